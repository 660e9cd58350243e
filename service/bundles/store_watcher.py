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
PATIENCE, LONGEST_PATIENCE = 30.0, 3600.0  # seconds per read; a read that times out leaves a thread behind

Result = TypeVar("Result")


class StoreRead(Generic[Result]):
    """A repeated read of one part of the store. A failure is counted, logged once and stored in `trouble`."""

    def __init__(
        self,
        problem: str,
        read: Callable[[], Coroutine[Any, Any, Result]],
        supervisor: Supervisor,
        metrics: Metrics,
        patience: float = PATIENCE,
    ) -> None:
        """Set up a read.

        `problem` is the sentence that reports a failure of `read`. A read times out after `patience` seconds; the limit
        doubles with each timeout.
        """
        self.trouble: str | None = None
        self._problem = problem
        self._read = read
        self._supervisor = supervisor
        self._failures = metrics.task_failures.labels(TASK)
        self._patience = self._first_patience = patience

    async def read(self) -> Result | None:
        """Return the result of the read; None when it failed."""
        try:
            result = await self._read_patiently()
        except (DiptychError, OSError) as error:
            self._failures.inc()
            self._note(str(error).rstrip(".") or type(error).__name__)
        except Exception as error:  # noqa: BLE001  # no exception may end the polling
            self._failures.inc()
            self._note(described(error), error)
        else:
            if self.trouble is not None:
                LOG.info("resolved: %s", self._problem)
            self.trouble, self._patience = None, self._first_patience
            return result
        return None

    async def _read_patiently(self) -> Result:
        """Read with a time limit. Raises TimeoutError and the exceptions of the read."""
        reading = self._supervisor.start("store_reading", self._read())
        try:
            done, _ = await asyncio.wait([reading], timeout=self._patience)
        finally:
            reading.cancel()
        if done:
            return reading.result()
        patience, self._patience = self._patience, min(2 * self._patience, LONGEST_PATIENCE)
        raise TimeoutError(f"no answer for {patience:g} s")

    def _note(self, why: str, unexpected: Exception | None = None) -> None:
        trouble = f"{self._problem} ({why})"
        if trouble != self.trouble:
            LOG.warning("%s", trouble, exc_info=unexpected)
        self.trouble = trouble


class Watch:
    """Call `follow` with the folder of the bundle that CURRENT names whenever it changes."""

    def __init__(
        self,
        look: Callable[[], Coroutine[Any, Any, Path | None]],
        read_paused: Callable[[], Coroutine[Any, Any, None]],
        follow: Callable[[Path], None],
        supervisor: Supervisor,
        metrics: Metrics,
    ) -> None:
        """Set up a watch. `look` reads CURRENT; it returns None if the service changed its bundle during the read."""
        self.seen: Path | None = None  # the last value of CURRENT; set it after every write to CURRENT
        self._look = StoreRead("the store cannot be read", look, supervisor, metrics)
        problem = "the list of paused labels cannot be read, so the last one stays in force"
        self._paused = StoreRead(problem, read_paused, supervisor, metrics)
        self._follow = follow
        self._orders = 0  # changes in progress that an administrator requested from the service
        self._before_order: Path | None = None  # the value of CURRENT when they began

    @property
    def troubles(self) -> list[str]:
        """One sentence per part of the store that cannot be read."""
        return [one for one in (self._look.trouble, self._paused.trouble) if one]

    async def check(self) -> None:
        """Read CURRENT and the list of paused labels once."""
        seen = self.seen
        found = await self._look.read()
        if found is not None and found != seen and self.seen == seen and not self._is_older(found):
            self.seen = found
            self._follow(found)
        await self._paused.read()

    def begin_order(self) -> None:
        """Note that an administrator changes the bundle: the present value of CURRENT is older than that order."""
        self._orders += 1

    def end_order(self) -> None:
        """Note that the change is over."""
        self._orders -= 1
        if not self._orders:
            self._before_order = None

    def try_again(self, found: Path) -> None:
        """Follow this value of CURRENT again at the next check."""
        if self.seen == found:
            self.seen = None

    def _is_older(self, found: Path) -> bool:
        if not self._orders:
            return False
        if self._before_order is None:
            self._before_order = found
        return self._before_order == found
