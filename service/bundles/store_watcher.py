"""Poll the store for the active bundle and the paused labels that other processes set."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, TypeVar

from retrieval.errors import DiptychError
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor, described

LOG = logging.getLogger("diptych")
TASK = "store_watch"
READ_SECONDS, LONGEST_READ_SECONDS = 30.0, 3600.0  # per read; a read that times out leaves a thread behind

Result = TypeVar("Result")


class StoreRead(Generic[Result]):
    """A repeated read of one part of the store. A failure is counted, logged once and stored in `problem`."""

    def __init__(
        self,
        sentence: str,
        read: Callable[[], Coroutine[Any, Any, Result]],
        supervisor: Supervisor,
        metrics: Metrics,
        timeout: float = READ_SECONDS,
    ) -> None:
        """Set up a read.

        `sentence` reports a failure of `read`. A read times out after `timeout` seconds; the limit
        doubles with each timeout.
        """
        self.problem: str | None = None
        self._sentence = sentence
        self._read = read
        self._supervisor = supervisor
        self._failures = metrics.task_failures.labels(TASK)
        self._timeout = self._first_timeout = timeout

    async def read(self) -> Result | None:
        """Return the result of the read; None when it failed."""
        try:
            result = await self._read_in_time()
        except (DiptychError, OSError) as error:
            self._failures.inc()
            self._note(str(error).rstrip(".") or type(error).__name__)
        except Exception as error:  # noqa: BLE001  # no exception may end the polling
            self._failures.inc()
            self._note(described(error), error)
        else:
            if self.problem is not None:
                LOG.info("resolved: %s", self._sentence)
            self.problem, self._timeout = None, self._first_timeout
            return result
        return None

    async def _read_in_time(self) -> Result:
        """Read with a time limit. Raises TimeoutError and the exceptions of the read."""
        reading = self._supervisor.start("store_reading", self._read())
        try:
            done, _ = await asyncio.wait([reading], timeout=self._timeout)
        finally:
            reading.cancel()
        if done:
            return reading.result()
        timeout, self._timeout = self._timeout, min(2 * self._timeout, LONGEST_READ_SECONDS)
        raise TimeoutError(f"no answer for {timeout:g} s")

    def _note(self, reason: str, unexpected: Exception | None = None) -> None:
        problem = f"{self._sentence} ({reason})"
        if problem != self.problem:
            LOG.warning("%s", problem, exc_info=unexpected)
        self.problem = problem


class StoreWatcher:
    """Call `follow` with the folder of the bundle that CURRENT names whenever it changes."""

    def __init__(
        self,
        read_active: Callable[[], Coroutine[Any, Any, Path | None]],
        read_paused: Callable[[], Coroutine[Any, Any, None]],
        follow: Callable[[Path], None],
        supervisor: Supervisor,
        metrics: Metrics,
    ) -> None:
        """Set up the watcher.

        `read_active` reads CURRENT; it returns None if the service changed its bundle during the read.
        """
        self.active: Path | None = None  # the last value of CURRENT; set it after every write to CURRENT
        self._active_read = StoreRead("the store cannot be read", read_active, supervisor, metrics)
        sentence = "the list of paused labels cannot be read, so the last one stays in force"
        self._paused_read = StoreRead(sentence, read_paused, supervisor, metrics)
        self._follow = follow
        self._admin_changes = 0  # changes in progress that an administrator requested from the service
        self._active_before: Path | None = None  # the value of CURRENT when they began

    @property
    def problems(self) -> list[str]:
        """One sentence per part of the store that cannot be read."""
        return [problem for problem in (self._active_read.problem, self._paused_read.problem) if problem]

    async def check(self) -> None:
        """Read CURRENT and the list of paused labels once."""
        before = self.active
        active = await self._active_read.read()
        if active is not None and active != before and self.active == before and not self._is_older(active):
            self.active = active
            self._follow(active)
        await self._paused_read.read()

    def begin_admin_change(self) -> None:
        """Note that an administrator changes the bundle: the present value of CURRENT is older than that change."""
        self._admin_changes += 1

    def end_admin_change(self) -> None:
        """Note that the change is over."""
        self._admin_changes -= 1
        if not self._admin_changes:
            self._active_before = None

    def try_again(self, folder: Path) -> None:
        """Follow this value of CURRENT again at the next check."""
        if self.active == folder:
            self.active = None

    def _is_older(self, active: Path) -> bool:
        if not self._admin_changes:
            return False
        if self._active_before is None:
            self._active_before = active
        return self._active_before == active
