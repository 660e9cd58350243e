"""One more bundle, opened for an administrator's comparisons and closed when it is idle.

It does not disturb the served bundle: it is loaded at low priority, there is one at a time, and it is closed before
another bundle is prepared for serving (docs/decisions/0050).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from service.bundles.generation import Generation
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor

LOG = logging.getLogger("diptych")
STUCK_SECONDS = 60.0  # an opening that takes longer is cancelled when another bundle is requested
Make = Callable[[str, Callable[[Generation], None]], Coroutine[Any, Any, Generation]]


class Compared:
    """The bundle that is open for comparison, if any."""

    def __init__(self, make: Make, metrics: Metrics, seconds: float, supervisor: Supervisor) -> None:
        """Set up comparisons. `make` opens a generation, which is closed after `seconds` without a request. 0: off."""
        self.generation: Generation | None = None
        self._make = make
        self._metrics = metrics
        self._seconds = seconds
        self._supervisor = supervisor
        self._lock = asyncio.Lock()
        self._opening: asyncio.Task[Generation] | None = None
        self._opens: str | None = None  # the bundle that is being opened
        self._rest: asyncio.TimerHandle | None = None
        self._began = 0.0  # when that opening began, by the loop's clock
        self._why = ""  # why an opening was cancelled
        self._closers = 0  # calls of `close` that have not returned
        self._closing: asyncio.Task[None] | None = None

    async def open(self, name: str) -> Generation:
        """Return a bundle's generation; open it if needed, replacing another. Raises BundleError, OSError, Refusal."""
        if not self._seconds:
            message = "No bundle is opened for comparison: the service was started with DIPTYCH_COMPARE_SECONDS=0."
            raise Refusal(403, "compare_off", message)
        if self._opens not in (None, name):
            if not self._opening or asyncio.get_running_loop().time() - self._began < STUCK_SECONDS:
                message = f"Bundle {self._opens} is being opened for comparison. Try again when it is open."
                raise Refusal(409, "busy_comparing", message)
            self.cancel(f"it took longer than {STUCK_SECONDS:g} s and bundle {name} was asked for")
        self._opens = name
        try:
            async with self._lock:
                if self._closers or self._opens not in (None, name):  # cancelled while this request waited
                    raise self._given_up(name)
                generation = self.generation
                if generation is None or generation.name != name:
                    generation = await self._instead(name)
                self._wait()
                return generation
        finally:
            if self._opens == name:
                self._opens = None

    def cancel(self, why: str = "another is to be served, or the service stops") -> None:
        """Cancel the opening in progress."""
        self._why = why
        if self._opening:
            self._opening.cancel()

    async def close(self) -> None:
        """Close the generation or cancel its opening; return when its memory is free."""
        self._closers += 1
        try:
            self.cancel()
            async with self._lock:
                await self._end()
        finally:
            self._closers -= 1

    async def _instead(self, name: str) -> Generation:
        await self._end()
        if self._closers:
            raise self._given_up(name)
        self._began = asyncio.get_running_loop().time()
        self._opening = self._supervisor.run("comparison_opening", self._make(name, self._crashes))
        try:
            self.generation = generation = await self._opening
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise self._given_up(name) from error
        finally:
            self._opening = None
        self._metrics.begins(generation)
        LOG.info("bundle %s is open for comparison", name)
        return generation

    def _given_up(self, name: str) -> Refusal:
        return Refusal(409, "busy_switching", f"Bundle {name} was not opened for comparison: {self._why}.")

    async def _end(self) -> None:
        if self._rest:
            self._rest.cancel()
        generation, self.generation = self.generation, None
        if generation:
            self._metrics.ends(generation)
            self._closing = self._supervisor.retry("comparison_closing", generation.close)
            LOG.info("bundle %s is no longer open for comparison", generation.name)
        if self._closing:
            await asyncio.shield(self._closing)  # cancelling the caller does not cancel the closing

    def _wait(self) -> None:
        if self._rest:
            self._rest.cancel()
        self._rest = asyncio.get_running_loop().call_later(self._seconds, self._close_soon)

    def _crashes(self, generation: Generation) -> None:
        LOG.error("bundle %s was opened for comparison, and its engines keep ending", generation.name)
        self._close_soon()

    def _close_soon(self) -> None:
        self._supervisor.retry("comparison_closing", self.close)
