"""Looking at the store every few seconds, so that what another process activates there is served."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, TypeVar

from retrieval.errors import DiptychError
from service.metrics import Metrics
from service.supervisor import Supervisor, described

LOG = logging.getLogger("diptych")
TASK = "store_watch"
PATIENCE, LONGEST_PATIENCE = 30.0, 3600.0  # seconds for one read; each that is given up leaves a thread behind

Result = TypeVar("Result")


class StoreRead(Generic[Result]):
    """One thing that is read of the store again and again. A failure is logged once, counted, and kept as `trouble`."""

    def __init__(
        self,
        problem: str,
        read: Callable[[], Coroutine[Any, Any, Result]],
        supervisor: Supervisor,
        metrics: Metrics,
        patience: float = PATIENCE,
    ) -> None:
        """`problem` says in words that `read` fails; a read may take `patience` seconds, later ones more."""
        self.trouble: str | None = None
        self._problem = problem
        self._read = read
        self._supervisor = supervisor
        self._failures = metrics.task_failures.labels(TASK)
        self._patience = self._first_patience = patience

    async def read(self) -> Result | None:
        """Return what was read, None where it could not be."""
        try:
            result = await self._read_patiently()
        except (DiptychError, OSError) as error:
            self._failures.inc()
            self._note(str(error).rstrip(".") or type(error).__name__)
        except Exception as error:  # noqa: BLE001  # the store must be read again, whatever was wrong with it
            self._failures.inc()
            self._note(described(error), error)
        else:
            if self.trouble is not None:
                LOG.info("it is over that %s", self._problem)
            self.trouble, self._patience = None, self._first_patience
            return result
        return None

    async def _read_patiently(self) -> Result:
        """Raises TimeoutError, and what reading raises."""
        reading = self._supervisor.start("store_reading", self._read())
        try:
            done, _ = await asyncio.wait([reading], timeout=self._patience)
        finally:
            reading.cancel()
        if done:
            return reading.result()
        patience, self._patience = self._patience, min(2 * self._patience, LONGEST_PATIENCE)
        raise TimeoutError(f"there has been no answer for {patience:g} s")

    def _note(self, why: str, unexpected: Exception | None = None) -> None:
        trouble = f"{self._problem} ({why})"
        if trouble != self.trouble:
            LOG.warning("%s", trouble, exc_info=unexpected)
        self.trouble = trouble


class Watch:
    """Calls `follow` with the folder of the bundle that CURRENT names whenever that has changed."""

    def __init__(
        self,
        look: Callable[[], Coroutine[Any, Any, Path | None]],
        read_paused: Callable[[], Coroutine[Any, Any, None]],
        follow: Callable[[Path], None],
        supervisor: Supervisor,
        metrics: Metrics,
    ) -> None:
        """`look` reads CURRENT and gives None where the service has changed its bundle meanwhile."""
        self.seen: Path | None = None  # what CURRENT named last; whoever changes CURRENT itself says so here
        self._look = StoreRead("the store cannot be looked at", look, supervisor, metrics)
        problem = "the list of paused labels cannot be read, so the last one holds"
        self._paused = StoreRead(problem, read_paused, supervisor, metrics)
        self._follow = follow
        self._orders = 0  # changes under way that were ordered of the service itself
        self._before_order: Path | None = None  # what CURRENT named when they began

    @property
    def troubles(self) -> list[str]:
        """Return why the store cannot be read, one sentence for each thing."""
        return [one for one in (self._look.trouble, self._paused.trouble) if one]

    async def check(self) -> None:
        """Look once at CURRENT and at the list of paused labels."""
        seen = self.seen
        found = await self._look.read()
        if found is not None and found != seen and self.seen == seen and not self._is_older(found):
            self.seen = found
            self._follow(found)
        await self._paused.read()

    def begin_order(self) -> None:
        """The service is told to change its bundle: what CURRENT names by now is older than that order."""
        self._orders += 1

    def end_order(self) -> None:
        """Such a change is over."""
        self._orders -= 1
        if not self._orders:
            self._before_order = None

    def try_again(self, found: Path) -> None:
        """Follow what CURRENT names at the next look as if it were new."""
        if self.seen == found:
            self.seen = None

    def _is_older(self, found: Path) -> bool:
        if not self._orders:
            return False
        if self._before_order is None:
            self._before_order = found
        return self._before_order == found
