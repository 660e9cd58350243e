"""Open one more bundle for an administrator's comparisons, and close it when it is idle.

It does not disturb the served bundle: it is loaded at low priority, there is one at a time, and it is closed before
another bundle is prepared for serving (docs/decisions/0050).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from service.bundles.generation import Generation, GenerationObserver
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor

LOG = logging.getLogger("diptych")
STUCK_SECONDS = 60.0  # an opening that takes longer is cancelled when another bundle is requested
OpenGeneration = Callable[[str, GenerationObserver], Coroutine[Any, Any, Generation]]


class Comparison:
    """The bundle that is open for comparison, if any."""

    def __init__(
        self, open_generation: OpenGeneration, metrics: Metrics, idle_seconds: float, supervisor: Supervisor
    ) -> None:
        """Set up comparisons. A generation is closed after `idle_seconds` without a request; 0: comparisons are off."""
        self.generation: Generation | None = None
        self._open_generation = open_generation
        self._metrics = metrics
        self._idle_seconds = idle_seconds
        self._supervisor = supervisor
        self._lock = asyncio.Lock()
        self._opening: asyncio.Task[Generation] | None = None
        self._opening_name: str | None = None  # the bundle that is being opened
        self._opening_since = 0.0  # loop time when that opening began
        self._idle_timer: asyncio.TimerHandle | None = None
        self._cancel_reason = ""
        self._closers = 0  # calls of `close` that have not returned
        self._closing: asyncio.Task[None] | None = None

    async def open(self, name: str) -> Generation:
        """Return a bundle's generation; open it if needed, replacing another. Raises BundleError, OSError, Refusal."""
        if not self._idle_seconds:
            message = "No bundle is opened for comparison: the service was started with DIPTYCH_COMPARE_SECONDS=0."
            raise Refusal(403, "compare_off", message)
        if self._opening_name not in (None, name):
            if not self._opening or asyncio.get_running_loop().time() - self._opening_since < STUCK_SECONDS:
                message = f"Bundle {self._opening_name} is being opened for comparison. Try again when it is open."
                raise Refusal(409, "busy_comparing", message)
            self.cancel(f"it took longer than {STUCK_SECONDS:g} s and bundle {name} was requested")
        self._opening_name = name
        try:
            async with self._lock:
                if self._closers or self._opening_name not in (None, name):  # cancelled while this request waited
                    raise self._cancelled(name)
                generation = self.generation
                if generation is None or generation.name != name:
                    generation = await self._replace_with(name)
                self._restart_idle_timer()
                return generation
        finally:
            if self._opening_name == name:
                self._opening_name = None

    def cancel(self, reason: str = "another is to be served, or the service stops") -> None:
        """Cancel the opening in progress."""
        self._cancel_reason = reason
        if self._opening:
            self._opening.cancel()

    async def close(self) -> None:
        """Close the generation or cancel its opening; return when its memory is free."""
        self._closers += 1
        try:
            self.cancel()
            async with self._lock:
                await self._close_current()
        finally:
            self._closers -= 1

    def on_open(self, generation: Generation) -> None:
        """Show the generation in the metrics."""
        self._metrics.begins(generation)

    def on_engine_death(self, generation: Generation) -> None:
        """Do nothing: the metrics count engines of served bundles only."""

    def on_crash_loop(self, generation: Generation) -> None:
        """Close the generation."""
        LOG.error("bundle %s was opened for comparison, and its engines keep ending", generation.name)
        self._close_soon()

    def on_closed(self, generation: Generation) -> None:
        """Remove the generation from the metrics."""
        self._metrics.ends(generation)

    async def _replace_with(self, name: str) -> Generation:
        await self._close_current()
        if self._closers:
            raise self._cancelled(name)
        self._opening_since = asyncio.get_running_loop().time()
        self._opening = self._supervisor.run("comparison_opening", self._open_generation(name, self))
        try:
            self.generation = generation = await self._opening
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise self._cancelled(name) from error
        finally:
            self._opening = None
        LOG.info("bundle %s is open for comparison", name)
        return generation

    def _cancelled(self, name: str) -> Refusal:
        return Refusal(409, "busy_switching", f"Bundle {name} was not opened for comparison: {self._cancel_reason}.")

    async def _close_current(self) -> None:
        if self._idle_timer:
            self._idle_timer.cancel()
        generation, self.generation = self.generation, None
        if generation:
            self._closing = self._supervisor.retry("comparison_closing", generation.close)
            LOG.info("bundle %s is no longer open for comparison", generation.name)
        if self._closing:
            await asyncio.shield(self._closing)  # cancelling the caller does not cancel the closing

    def _restart_idle_timer(self) -> None:
        if self._idle_timer:
            self._idle_timer.cancel()
        self._idle_timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._close_soon)

    def _close_soon(self) -> None:
        self._supervisor.retry("comparison_closing", self.close)
