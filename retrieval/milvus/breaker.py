"""Refuse searches at once while a server is away, and let one through from time to time to find out if it is back."""

import random
import time
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from retrieval.errors import IndexUnavailable

FAILURES = 3  # in a row; fewer may be a lost connection of a server that is not away
PROBE_SECONDS = 1.0  # between two searches that are let through while the breaker is open
PAUSE_SECONDS = 0.1  # before a search is repeated
Result = TypeVar("Result")


class CircuitBreaker:
    """Open after FAILURES failures in a row over at least `wait_seconds`; close at the first success. Thread-safe."""

    def __init__(
        self,
        wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._wait_seconds, self._clock, self._pause = wait_seconds, clock, pause
        self._failures, self._since, self._next_probe = 0, 0.0, 0.0
        self._reason = ""
        self._is_open = False
        self._lock = Lock()

    @property
    def is_open(self) -> bool:
        """Return whether searches are refused."""
        return self._is_open

    def call(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`; repeat it while it raises IndexUnavailable, until the breaker opens.

        Raises IndexUnavailable, without calling `work` if the breaker is open and no probe is due.
        """
        while True:
            self._enter()
            try:
                result = work()
            except IndexUnavailable as error:
                if self._fail(str(error)):
                    raise
                self._pause(PAUSE_SECONDS * random.uniform(0.5, 1.5))  # searches do not all come back at once
                continue
            self._succeed()
            return result

    def _enter(self) -> None:
        with self._lock:
            if not self._is_open:
                return
            now = self._clock()
            if now < self._next_probe:
                raise IndexUnavailable(self._reason)
            self._next_probe = now + PROBE_SECONDS  # this search is the probe

    def _fail(self, reason: str) -> bool:
        """Count a failure; return whether the breaker is open."""
        with self._lock:
            now = self._clock()
            if not self._failures:
                self._since = now
            self._failures += 1
            self._reason = reason
            if self._failures >= FAILURES and now - self._since >= self._wait_seconds:
                self._is_open, self._next_probe = True, now + PROBE_SECONDS
            return self._is_open

    def _succeed(self) -> None:
        with self._lock:
            self._failures, self._is_open = 0, False
