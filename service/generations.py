"""Which bundle is served: prepare → warm → switch → drain → close.

A request belongs to the generation that admitted it until it is answered, so no answer ever mixes two bundles.
"""

import asyncio
import logging
import time

from retrieval.errors import BundleError, DiptychError
from retrieval.store import Store
from service import errors
from service.batching import Ticket
from service.errors import Refusal
from service.frames import Asked
from service.generation import Generation
from service.metrics import Metrics
from service.schemas import ActivateResponse, Readiness
from service.settings import Settings

LOG = logging.getLogger("diptych")


class Generations:
    """The generation that is served, the one being prepared, and those that are draining."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.current: Generation | None = None
        self.stopping = False
        self._settings = settings
        self._metrics = metrics
        self._store = Store(settings.store.resolve())
        self._numbers = 0
        self._preparing: str | None = None
        self._change: asyncio.Task[Generation] | None = None
        self._failed: str | None = None  # why the last change of bundle did not happen
        self._closing: set[asyncio.Task[None]] = set()
        metrics.watch(lambda: self._depth("waiting_queries"), lambda: self._depth("unfinished"))

    async def open_active(self) -> Generation:
        """Serve the store's active bundle. Raises BundleError."""
        name = self._store.active()
        if name is None:
            known = ", ".join(self._store.bundles()) or "none yet"
            raise BundleError(
                f"{self._settings.store} has no active bundle (bundles: {known}). "
                "Export one with `diptych export CKPT --store STORE --activate`."
            )
        self._preparing = name
        try:
            generation = await self._prepare(name)
        except DiptychError as error:
            self._failed = f"bundle {name} could not be opened: {error}"
            raise
        finally:
            self._preparing = None
        self._serve(generation)
        return generation

    def admit(self, asked: Asked, seconds: float | None = None) -> Ticket:
        """Queue a request with the generation of this moment; it waits `seconds` at most. Raises Refusal 429 or 503."""
        if self.current is None:
            raise errors.unavailable(f"The service is not ready: {self.readiness().detail}.")
        return self.current.admit(asked, seconds)

    async def activate(self, name: str) -> ActivateResponse:
        """Serve another bundle, without a gap. On any failure the old one stays; raises Refusal saying why."""
        started = time.perf_counter()
        if self._preparing or self.stopping:
            why = f"bundle {self._preparing} is being prepared" if self._preparing else "the service is stopping"
            raise Refusal(409, "busy_switching", f"Bundle {name} was not activated: {why}.")
        before = self.current
        self._preparing = name
        self._change = asyncio.create_task(self._change_to(name))
        try:
            generation = await self._change
        except (DiptychError, OSError) as error:
            raise self._not_activated(name, error) from error
        except asyncio.CancelledError as error:
            raise Refusal(
                409, "busy_switching", f"Bundle {name} was not activated: the service is stopping."
            ) from error
        finally:
            self._preparing = self._change = None
        self._failed = None
        self._metrics.switches.labels("done").inc()
        seconds = time.perf_counter() - started
        self._metrics.switch_seconds.observe(seconds)
        LOG.info("bundle %s is served, after %.1f s", generation.name, seconds)
        previous = before.name if before else None
        return ActivateResponse(bundle=generation.name, previous=previous, seconds=round(seconds, 3))

    def readiness(self) -> Readiness:
        """Whether requests are answered, and what an operator should know."""
        obstacles = self._obstacles()
        notes = [f"bundle {self._preparing} is being prepared"] if self._preparing else []
        notes += [self._failed] if self._failed else []
        detail = "; ".join(self._public(note) for note in obstacles + notes) or "serving"
        return Readiness(ready=not obstacles, bundle=self.current.name if self.current else None, detail=detail)

    def stop(self) -> None:
        """From now on not ready, and no change of bundle; requests are still answered."""
        self.stopping = True
        if self._change:
            self._change.cancel()

    async def close(self) -> None:
        """Answer what was admitted, then end every engine."""
        if self.current:
            self._retire(self.current)
        if self._closing:
            await asyncio.wait(self._closing)

    def _obstacles(self) -> list[str]:
        """What keeps requests from being answered."""
        if self.stopping:
            return ["the service is stopping"]
        if self.current is None:
            return ["no bundle is open yet"]
        if self.current.trouble:
            return [self.current.trouble]
        return [] if self.current.opened else ["the engine ended and is being replaced"]

    async def _change_to(self, name: str) -> Generation:
        current = self.current
        if current and current.name == name and current.opened and not current.trouble:
            await asyncio.to_thread(self._store.activate, name)
            return current
        generation = await self._prepare(name)
        try:
            await asyncio.to_thread(self._store.activate, name)
        except BaseException:
            await generation.close()
            raise
        self._serve(generation)
        if current:
            self._retire(current)
        return generation

    async def _prepare(self, name: str) -> Generation:
        self._numbers += 1
        return await Generation(self._numbers, name, self._store, self._settings, self._metrics).open()

    def _serve(self, generation: Generation) -> None:
        self.current = generation
        self._metrics.serving(generation.name, generation.number)

    def _retire(self, generation: Generation) -> None:
        task = asyncio.create_task(generation.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _not_activated(self, name: str, error: Exception) -> Refusal:
        why = str(error) if isinstance(error, DiptychError) else f"the store cannot be used ({error})"
        self._failed = f"bundle {name} was not activated: {why}"
        self._metrics.switches.labels("failed").inc()
        LOG.error("%s", self._failed)
        status = 422 if (self._store.path / "bundles" / name).is_dir() else 404
        return Refusal(status, "not_activated", self._public(f"Bundle {name} was not activated: {why}"))

    def _public(self, text: object) -> str:
        """A sentence for a client: where the store lies on this machine is not a client's business."""
        place = str(self._store.path)
        return str(text).replace(f"{place}/", "").replace(place, "the store")

    def _depth(self, of: str) -> int:
        return getattr(self.current.batcher, of) if self.current else 0
