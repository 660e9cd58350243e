"""Which bundle is served: fetch → memory check → load, warm, check → switch → drain → close; and the way back.

A request belongs to the generation that admitted it until it is answered, so no answer ever mixes two bundles. If a
generation is given up because its engines keep ending, another one answers its requests from their beginning.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple

from retrieval.errors import DiptychError
from retrieval.signatures import trusted_keys
from service import errors
from service.aside import aside
from service.batching import Ticket
from service.comparing import Compared
from service.errors import Refusal
from service.frames import Asked
from service.generation import Generation
from service.metrics import Metrics
from service.opening import Opener
from service.pausing import Paused
from service.rationing import Traffic, no_traffic
from service.schemas import ActivateResponse, Readiness
from service.settings import Settings
from service.source import Source
from service.watching import Watch

LOG = logging.getLogger("diptych")
PAUSE_PATIENCE = 2.0  # seconds; longer an administrator does not wait to hear which ids are unknown


class Change(NamedTuple):
    """Another bundle to be served, and what writes that into the store."""

    bundle: str
    note: Callable[[], object] | None
    given_up: Generation | None = None  # whose requests it is to answer from their beginning
    hurry: bool = False  # what is served is bad: loading gives way, but takes all the time that is left


class Generations:
    """The generation that is served, the one being prepared, one kept for the way back, and those that are draining."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Raises BadInput for a URL that cannot be a store's."""
        self.current: Generation | None = None
        self.kept: Generation | None = None
        self.stopping = False
        self.source = Source(settings.store, trusted_keys(settings.trusted_keys))
        self.paused = Paused(self.source, settings.max_paused)
        self.compared = Compared(self._open_compared, metrics, settings.compare_seconds)
        self._settings = settings
        self._metrics = metrics
        self._watch = Watch(self._look, self._follow, settings.watch_seconds)
        self._opener = Opener(settings, metrics, self.source, lambda: self.paused.ids)
        self._preparing: str | None = None
        self._change: asyncio.Task[Generation] | None = None
        self._before: str | None = None  # the bundle that was served before the present one
        self._failed: str | None = None  # why the last change of bundle did not happen, or happened unasked
        self._pausing = asyncio.Lock()
        self._closing: dict[asyncio.Task[None], Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        metrics.watch(lambda: self._depth("waiting_queries"), lambda: self._depth("unfinished"))

    @property
    def preparing(self) -> str | None:
        """The bundle that is being prepared."""
        return self._preparing

    @property
    def draining(self) -> list[Generation]:
        """Those that have been replaced and finish what they admitted."""
        return list(self._closing.values())

    async def open_active(self) -> Generation:
        """Serve the store's active bundle, and from then on what becomes active. Raises BundleError."""
        await aside(self.paused.read)
        name = await aside(partial(self.source.bring, None))
        self._preparing = name
        try:
            generation = await self._prepare(Change(name, None))
        except DiptychError as error:
            self._failed = f"bundle {name} could not be opened: {error}"
            raise
        finally:
            self._preparing = None
        self._serve(generation)
        await asyncio.to_thread(self.source.followed, name)
        if self._settings.watch_seconds and not self.stopping:
            self._begin(self._watch.run(name))
        return generation

    def admit(self, asked: Asked, seconds: float | None = None) -> Ticket:
        """Queue a request with the generation of this moment; it waits `seconds` at most. Raises Refusal 429 or 503."""
        if self.current is None:
            raise errors.unavailable(f"The service is not ready: {self.readiness().detail}.")
        return self.current.admit(asked, seconds)

    @property
    def serving(self) -> str | None:
        """The bundle that takes the requests."""
        return self.current.name if self.current else None

    @property
    def state(self) -> tuple[int, int] | None:
        """What an answer depends on beside its request: the generation, and how often it was told what is paused."""
        return (self.current.number, self.current.told) if self.current else None

    def full(self) -> bool:
        """Whether no request can be admitted at this moment for want of room in the queue."""
        return self.current is not None and self.current.batcher.full

    async def activate(self, name: str) -> ActivateResponse:
        """Serve another bundle, without a gap. On any failure the old one stays; raises Refusal saying why."""
        try:
            return await self._switch(Change(name, partial(self.source.note, name)))
        except (DiptychError, OSError) as error:
            raise self._not_activated(name, error) from error

    async def rollback(self) -> ActivateResponse:
        """Serve the bundle that was active before; at once, if it was kept. Raises Refusal as `activate` does."""
        name = None
        try:
            name = await aside(self.source.previous)
            if name is None:
                raise Refusal(409, "no_earlier_bundle", "There is no earlier bundle to go back to; activate one.")
            return await self._switch(Change(name, partial(self.source.note_rollback, name), hurry=True))
        except (DiptychError, OSError) as error:
            raise self._not_activated(name or "of before", error) from error

    async def compare(self, name: str, asked: Asked, seconds: float | None = None) -> Ticket:
        """Queue a request with any bundle of the store, opened for it if need be. Raises Refusal."""
        for one in (self.current, self.kept):
            if one and one.name == name:
                return one.admit(asked, seconds)
        if self._preparing or self.stopping:
            why = f"bundle {self._preparing} is being prepared" if self._preparing else "the service is stopping"
            raise Refusal(409, "busy_switching", f"Bundle {name} was not opened for comparison: {why}.")
        try:
            return (await self.compared.open(name)).admit(asked, seconds)
        except (DiptychError, OSError) as error:
            status, why = self._status_without(name), f"Bundle {name} was not opened for comparison: {_reason(error)}"
            raise Refusal(status, "not_compared", self.public(why)) from error

    async def pause(self, add: Sequence[str], remove: Sequence[str]) -> list[str] | None:
        """Change the list of paused labels, for every request from now on; returns the ids that the bundle has not.

        None: the engine has not said yet. Raises Refusal when the list is full or cannot be kept.
        """
        async with self._pausing:
            try:
                await asyncio.to_thread(self.paused.change, add, remove)
            except (DiptychError, OSError) as error:
                raise Refusal(422, "not_paused", self.public(f"Nothing was changed: {error}")) from error
            self._tell_paused()
        return await self.current.told_paused(PAUSE_PATIENCE) if self.current else None

    def readiness(self) -> Readiness:
        """Whether requests are answered, and what an operator should know."""
        obstacles = self._obstacles()
        notes = [f"bundle {self._preparing} is being prepared"] if self._preparing else []
        notes += [note for note in (self._failed, self._watch.trouble) if note]
        detail = "; ".join(self.public(note) for note in obstacles + notes) or "serving"
        return Readiness(ready=not obstacles, bundle=self.current.name if self.current else None, detail=detail)

    def stop(self) -> None:
        """From now on not ready, and no change of bundle; requests are still answered."""
        self.stopping = True
        self.compared.cancel()
        for task in self._tasks:
            task.cancel()
        if self._change:
            self._change.cancel()

    async def close(self) -> None:
        """Answer what was admitted, then end every engine."""
        await self.compared.close()
        for generation in (self.current, self.kept):
            if generation:
                self._retire(generation)
        if waiting := [*self._closing, *self._tasks]:
            await asyncio.wait(waiting)

    def public(self, text: object) -> str:
        """A sentence for a client: where the store lies on this machine is not a client's business."""
        place = str(self.source.store.path)
        return str(text).replace(f"{place}/", "").replace(place, "the store")

    def _obstacles(self) -> list[str]:
        """What keeps requests from being answered."""
        if self.stopping:
            return ["the service is stopping"]
        if self.current is None:
            return ["no bundle is open yet"]
        if self.current.trouble:
            return [self.current.trouble]
        return [] if self.current.opened else ["the engine ended and is being replaced"]

    async def _switch(self, change: Change) -> ActivateResponse:
        """Serve another bundle, and say so in the store. Raises DiptychError, OSError or Refusal."""
        name = change.bundle
        if self._preparing or self.stopping:
            why = f"bundle {self._preparing} is being prepared" if self._preparing else "the service is stopping"
            raise Refusal(409, "busy_switching", f"Bundle {name} was not activated: {why}.")
        started = time.perf_counter()
        before = self.current
        self._preparing = name
        self._change = asyncio.create_task(self._change_to(change))
        try:
            generation = await self._change
        except (DiptychError, OSError) as error:
            self._note_failure(name, error)
            raise
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            why = f"Bundle {name} was not activated: the service is stopping."
            raise Refusal(409, "busy_switching", why) from error
        finally:
            self._preparing = self._change = None
        self._failed = None
        self._metrics.switches.labels("fallback" if change.given_up else "done").inc()
        seconds = time.perf_counter() - started
        self._metrics.switch_seconds.observe(seconds)
        LOG.info("bundle %s is served, after %.1f s", generation.name, seconds)
        previous = before.name if before else None
        return ActivateResponse(bundle=generation.name, previous=previous, seconds=round(seconds, 3))

    async def _change_to(self, change: Change) -> Generation:
        if self.current and self.current.name == change.bundle and self.current.healthy:
            await self._note(change)
            return self.current
        generation = await self._prepare(change)
        try:
            await self._note(change)
        except BaseException:
            if generation is not self.kept:
                await generation.close()
            raise
        self._serve(generation, change.given_up)
        return generation

    async def _note(self, change: Change) -> None:
        if change.note:
            await asyncio.to_thread(change.note)
            self._watch.seen = change.bundle

    async def _prepare(self, change: Change) -> Generation:
        """A generation that can answer: the kept one, if it is that. Raises BundleError."""
        name = change.bundle
        if self.kept and self.kept.name == name and self.kept.healthy:
            return self.kept
        await self.compared.close()  # its memory, and its share of the processor, are this one's
        beside = partial(self._beside, change.hurry)
        return await self._opener.open(name, self._crashes, beside, partial(self._make_room, name))

    def _open_compared(self, name: str, crashes: Callable[[Generation], None]) -> Awaitable[Generation]:
        return self._opener.open_aside(name, crashes, lambda _: self._asked_lately)

    def _beside(self, hurry: bool, generation: Generation) -> Traffic | None:
        """The traffic that must not feel how a generation's engine is loaded; None where no other one answers."""
        if self.current is None or self.current is generation or not self.current.healthy:
            return None
        return no_traffic if hurry else self._asked_lately

    def _asked_lately(self) -> bool:
        return self.current is not None and self.current.asked_lately()

    async def _make_room(self, name: str) -> bool:
        """Give up the kept generation for another bundle's sake; whether there was one."""
        kept, self.kept = self.kept, None
        if kept is None:
            return False
        LOG.info("bundle %s is not kept any longer, to make room for %s", kept.name, name)
        await kept.close()
        return True

    def _serve(self, generation: Generation, given_up: Generation | None = None) -> None:
        former, self.current = self.current, generation
        if self.kept is generation:
            self.kept = None
        self._metrics.serving(generation.name, generation.number)
        if former is None:
            return
        if former.name != generation.name:
            self._before = None if given_up else former.name
        if given_up or not former.healthy:
            former.hand_over(generation)
        elif self._settings.keep_previous:
            former, self.kept = self.kept, former  # what was kept until now goes in its place
        if former:
            self._retire(former)

    def _retire(self, generation: Generation) -> None:
        task = asyncio.create_task(generation.close())
        self._closing[task] = generation
        task.add_done_callback(self._closing.pop)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the requests, until the service stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self) -> str | None:
        """What the store's CURRENT names now; the list of paused labels is looked at on the way.

        None when the service has changed its bundle, and CURRENT, while this was looked up.
        """
        served = self.current
        name = await aside(self.source.active)
        async with self._pausing:
            if await aside(self.paused.read):
                self._tell_paused()
        return None if self._change or self.current is not served else name

    async def _follow(self, name: str) -> None:
        """Serve what another process has made the active bundle."""
        if self.current and name == self.current.name:
            return
        LOG.info("the store's active bundle is %s now", name)
        try:
            await self._switch(
                Change(name, partial(self.source.followed, name), hurry=name == self._before)
            )  # so somebody goes back
        except (DiptychError, OSError, Refusal):
            return  # the reason has been noted, and the present bundle stays

    def _crashes(self, generation: Generation) -> None:
        """A bundle's engines keep ending: go back to the one before, where there is one."""
        if generation is self.current and not self._preparing and not self.stopping:
            self._begin(self._fall_back(generation))

    async def _fall_back(self, generation: Generation) -> None:
        try:
            name = await asyncio.to_thread(self._earlier, generation.name)
        except DiptychError as error:
            LOG.error("the store does not say which bundle is the one before: %s", error)
            return
        if name is None or generation is not self.current:
            return
        settings = self._settings
        why = f"bundle {generation.name} was given up: {settings.crashes} engines ended in {settings.crash_seconds:g} s"
        LOG.error("%s; going back to bundle %s", why, name)
        try:
            await self._switch(Change(name, None, given_up=generation, hurry=True))
        except (DiptychError, OSError, Refusal):
            return  # the reason has been noted, and the engine is still being replaced
        self._failed = f"{why}; bundle {name} is served until another is activated"

    def _earlier(self, than: str) -> str | None:
        """A bundle that was good before this one: kept, or served, or the store's previous one."""
        known = self.source.store.bundles()
        candidates = [self.kept.name if self.kept else None, self._before, self.source.store.previous()]
        return next((name for name in candidates if name in known and name != than), None)

    def _tell_paused(self) -> None:
        for generation in (self.current, self.kept, self.compared.generation):
            if generation:
                generation.tell_paused()

    def _note_failure(self, name: str, error: Exception) -> None:
        self._failed = f"bundle {name} was not activated: {_reason(error)}"
        self._metrics.switches.labels("failed").inc()
        LOG.error("%s", self._failed)

    def _not_activated(self, name: str, error: Exception) -> Refusal:
        return Refusal(
            self._status_without(name),
            "not_activated",
            self.public(f"Bundle {name} was not activated: {_reason(error)}"),
        )

    def _status_without(self, name: str) -> int:
        return 422 if (self.source.store.path / "bundles" / name).is_dir() else 404

    def _depth(self, of: str) -> int:
        return getattr(self.current.batcher, of) if self.current else 0


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, DiptychError) else f"the store cannot be used ({error})"
