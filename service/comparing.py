"""One bundle more, opened for an administrator's questions and closed when nobody asks it any longer.

It never stands in the way of the bundle that is served: it is loaded behind it, it is one at a time, and it is closed
before another bundle is made ready to be served (docs/decisions/0050).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from service.errors import Refusal
from service.generation import Generation
from service.metrics import Metrics

LOG = logging.getLogger("diptych")
Make = Callable[[str, Callable[[Generation], None]], Awaitable[Generation]]


class Compared:
    """The bundle that is open for comparison, if one is."""

    def __init__(self, make: Make, metrics: Metrics, seconds: float) -> None:
        """`make` opens a bundle's generation; after `seconds` unasked it is closed. 0: none is opened."""
        self.generation: Generation | None = None
        self._make = make
        self._metrics = metrics
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._opening: asyncio.Task[Generation] | None = None
        self._opens: str | None = None  # the bundle that is being opened
        self._rest: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, name: str) -> Generation:
        """The bundle's generation, opened if need be, in another's place. Raises BundleError, OSError or Refusal."""
        if not self._seconds:
            message = "No bundle is opened for comparison: the service was started with DIPTYCH_COMPARE_SECONDS=0."
            raise Refusal(403, "compare_off", message)
        if self._opens not in (None, name):
            message = f"Bundle {self._opens} is just being opened for comparison. Ask again when it is."
            raise Refusal(409, "busy_comparing", message)
        self._opens = name
        try:
            async with self._lock:
                generation = self.generation
                if generation is None or generation.name != name:
                    generation = await self._instead(name)
                self._wait()
                return generation
        finally:
            self._opens = None

    def cancel(self) -> None:
        """Give up an opening that is under way."""
        if self._opening:
            self._opening.cancel()

    async def close(self) -> None:
        """End it, or the opening of it; returns when its memory is free."""
        self.cancel()
        async with self._lock:
            await self._end()

    async def _instead(self, name: str) -> Generation:
        await self._end()
        self._opening = asyncio.ensure_future(self._make(name, self._crashes))
        try:
            self.generation = generation = await self._opening
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            why = f"Bundle {name} was not opened for comparison: another is to be served, or the service stops."
            raise Refusal(409, "busy_switching", why) from error
        finally:
            self._opening = None
        self._metrics.begins(generation)
        LOG.info("bundle %s is open for comparison", name)
        return generation

    async def _end(self) -> None:
        if self._rest:
            self._rest.cancel()
        generation, self.generation = self.generation, None
        if generation:
            self._metrics.ends(generation)
            await generation.close()
            LOG.info("bundle %s is not open for comparison any longer", generation.name)

    def _wait(self) -> None:
        if self._rest:
            self._rest.cancel()
        self._rest = asyncio.get_running_loop().call_later(self._seconds, self._close_soon)

    def _crashes(self, generation: Generation) -> None:
        LOG.error("bundle %s was opened for comparison, and its engines keep ending", generation.name)
        self._close_soon()

    def _close_soon(self) -> None:
        task = asyncio.create_task(self.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
