"""Serve one bundle and switch to another: fetch → memory check → load, warm, check → switch → drain → close.

A request belongs to the generation that admitted it until it is answered, so no answer mixes two bundles. When a
generation is replaced because its engines keep dying, its successor answers its requests from the beginning.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import DiptychError
from service import errors
from service.access.callers import ADMINISTRATOR, ANYONE, Caller
from service.batching.pending_request import PendingRequest
from service.bundles.comparison import Compared
from service.bundles.generation import Generation
from service.bundles.loader import Opener
from service.bundles.paused_broadcast import PausedSync
from service.bundles.rollback import Fallback
from service.bundles.store_access import Source
from service.bundles.store_follower import Following
from service.bundles.switch_queue import Turns, reason, refused
from service.engine.cpu_throttle import Traffic, no_traffic
from service.engine.protocol import Asked
from service.errors import Refusal
from service.http.admin_schemas import ActivateResponse
from service.http.schemas import Readiness
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from service.settings import Settings

LOG = logging.getLogger("diptych")
PAUSE_PATIENCE = 2.0  # seconds that a change of the paused labels waits for the unknown ids
SLOW_SECONDS = 30.0  # a start-up step that takes longer is logged


class Change(NamedTuple):
    """A change of the served bundle."""

    bundle: str
    note: Callable[[Path], object] | None  # records the change in the store; gets the bundle's folder
    given_up: Generation | None = None  # the faulty generation; the new one takes over its requests
    hurry: bool = False  # the served bundle is faulty: load at low priority, but without pauses


class Generations:
    """Manage the generations of one service: served, being prepared, kept for rollback, draining."""

    def __init__(self, settings: Settings, metrics: Metrics, supervisor: Supervisor) -> None:
        """Raises BadInput for a URL that cannot be a store's."""
        self.current: Generation | None = None
        self.kept: Generation | None = None
        self.stopping = False
        self.supervisor = supervisor
        self.source = Source(settings.store, trusted_keys(settings.trusted_keys))
        self.paused = PausedSync(self.source, settings.max_paused, self._tell_paused, supervisor)
        self.compared = Compared(self._open_compared, metrics, settings.compare_seconds, supervisor)
        self._settings = settings
        self._metrics = metrics
        self._following = Following(self, metrics)
        self._opener = Opener(settings, metrics, self.source, lambda: self.paused.ids, supervisor)
        self._turns = Turns(supervisor)
        self._starting: str | None = None  # the start-up step in progress
        self._before: str | None = None  # the bundle that was served before
        self._failed: str | None = None  # why the last change of bundle failed, or why a rollback was automatic
        self._closing: dict[asyncio.Task[None], Generation] = {}
        self._fallback = Fallback(self, settings)
        metrics.watch(lambda: self._depth("waiting_queries"), lambda: self._depth("unfinished"))

    @property
    def preparing(self) -> str | None:
        """Name of the bundle that is being prepared."""
        return self._turns.bundle

    @property
    def draining(self) -> list[Generation]:
        """Replaced generations that finish the requests they admitted."""
        return list(self._closing.values())

    @property
    def before(self) -> str | None:
        """Name of the bundle that was served before."""
        return self._before

    async def open_active(self) -> Generation:
        """Serve the store's active bundle and follow later changes of it.

        Raises DiptychError or OSError when it cannot be opened, and Refusal when the service stops first.
        """
        with self._step("the list of paused labels is being read"):
            await self.paused.read()
        while self.current is None:
            with self._step("the active bundle is being looked up"):
                folder = await self.supervisor.read(partial(self.source.bring, None))
            try:
                with self._step(None, f"bundle {folder.name} is being loaded"):
                    await self._open_first(folder)
            except Refusal:
                if self.stopping:
                    raise
                await self.quiet()  # pre-empted by an administrator's order
        if self._settings.watch_seconds and not self.stopping:
            self._following.begin(folder, self._settings.watch_seconds)
        return self.current

    async def _open_first(self, folder: Path) -> None:
        name = folder.name
        async with self._turns.turn(name):
            try:
                generation = await self._turns.load(name, self._prepare(Change(name, None)))
            except DiptychError as error:
                self._failed = f"bundle {name} could not be opened: {error}"
                raise
            self._serve(generation)
            await self.supervisor.read(partial(self.source.followed, generation.folder))

    def admit(self, asked: Asked, seconds: float | None = None, caller: Caller = ANYONE) -> PendingRequest:
        """Queue a request with the served generation for at most `seconds`. Raises Refusal 422, 429 or 503."""
        if self.current is None:
            raise errors.unavailable(f"The service is not ready: {self.readiness().detail}.")
        return self.current.admit(asked, seconds, caller)

    @property
    def serving(self) -> str | None:
        """Name of the served bundle."""
        return self.current.name if self.current else None

    @property
    def state(self) -> tuple[int, int] | None:
        """Key of cached answers beside the request: generation number and version of the paused labels."""
        return (self.current.number, self.current.told) if self.current else None

    def full(self) -> bool:
        """Return whether the queue is full, so that a request is admitted only in place of another one."""
        return self.current is not None and self.current.batcher.full

    def refuse_early(self, caller: Caller, texts: int) -> None:
        """Check the queue for a request of at least `texts` texts before it is parsed. Raises Refusal 429."""
        if self.current is not None:
            self.current.batcher.refuse_early(caller, texts)

    def turns_away(self, caller: Caller) -> bool:
        """Return whether the queue has no room for any request of this caller."""
        return self.current is not None and self.current.batcher.turns_away(caller)

    async def activate(self, name: str) -> ActivateResponse:
        """Serve another bundle without interruption. Pre-empts a bundle that is being loaded.

        Raises Refusal with the reason when it fails; the present bundle then stays.
        """
        try:
            with self._following.ordered():
                async with self._turns.turn(name):
                    return await self.switch(Change(name, self.source.note))
        except (DiptychError, OSError) as error:
            raise await self._not_activated(name, error) from error

    async def rollback(self) -> ActivateResponse:
        """Serve the bundle that was active before, immediately if it was kept. Pre-empts a bundle that is being loaded.

        Raises Refusal as `activate` does.
        """
        name, source = None, self.source
        try:
            name = await self.supervisor.read(source.previous)
            if name is None:
                message = "There is no earlier bundle to go back to; activate one."
                raise Refusal(409, "no_earlier_bundle", message)
            with self._following.ordered():
                async with self._turns.turn(name, urgent=True):
                    name = await self.supervisor.read(source.previous) or name  # it may have changed by now
                    return await self.switch(Change(name, source.note_rollback, hurry=True))
        except (DiptychError, OSError) as error:
            raise await self._not_activated(name or "of before", error) from error

    async def compare(self, name: str, asked: Asked, seconds: float | None = None) -> PendingRequest:
        """Queue a request with any bundle of the store; open it if needed. Raises Refusal."""
        for one in (self.current, self.kept):
            if one and one.name == name:
                return one.admit(asked, seconds, ADMINISTRATOR)
        if self.preparing or self.stopping:
            why = f"bundle {self.preparing} is being prepared" if self.preparing else "the service is stopping"
            raise Refusal(409, "busy_switching", f"Bundle {name} was not opened for comparison: {why}.")
        try:
            return (await self.compared.open(name)).admit(asked, seconds, ADMINISTRATOR)
        except (DiptychError, OSError) as error:
            status = await self._status_without(name)
            why = f"Bundle {name} was not opened for comparison: {reason(error)}"
            raise Refusal(status, "not_compared", self.public(why)) from error

    async def pause(self, add: Sequence[str], remove: Sequence[str]) -> list[str] | None:
        """Change the paused labels; return the paused ids that the served bundle does not have.

        Returns None when the engine has not answered in time. Raises Refusal when the list is full or cannot be stored.
        """
        try:
            await self.paused.change(add, remove)
        except (DiptychError, OSError) as error:
            raise Refusal(422, "not_paused", self.public(f"Nothing was changed: {error}")) from error
        return await self.current.told_paused(PAUSE_PATIENCE) if self.current else None

    def readiness(self) -> Readiness:
        """Return whether requests are answered, and notes for the operator."""
        obstacles = self._obstacles()
        notes = [self._starting, f"bundle {self.preparing} is being prepared" if self.preparing else None]
        notes += [self._failed, *self._following.troubles, *self.supervisor.failing]
        detail = "; ".join(self.public(note) for note in obstacles + notes if note) or "serving"
        return Readiness(ready=not obstacles, bundle=self.current.name if self.current else None, detail=detail)

    def stop(self) -> None:
        """Report not ready and refuse changes of bundle. Requests are still answered."""
        self.stopping = True
        self.compared.cancel()
        self._turns.stop()
        self._following.stop()
        self._fallback.stop()
        self.supervisor.stop_reading()

    async def close(self) -> None:
        """Answer the admitted requests, then end every engine."""
        for generation in (self.current, self.kept):
            if generation:
                self._retire(generation)
        await asyncio.wait([*self._closing, self.supervisor.retry("comparison_closing", self.compared.close)])

    def public(self, text: object) -> str:
        """Return a message without the local path of the store, for clients."""
        return self.source.public(text)

    def serves(self, folder: Path) -> bool:
        """Return whether the bundle in this folder is served."""
        return self.current is not None and self.current.folder == folder

    async def give_up(self, generation: Generation, successor: str, why: str) -> None:
        """Replace a faulty bundle; the successor answers its requests. Raises DiptychError, OSError or Refusal."""
        async with self._turns.turn(successor, urgent=True):
            if generation is self.current:
                await self.switch(Change(successor, None, given_up=generation, hurry=True))
                self._failed = f"{why}; bundle {successor} is served until another is activated"

    async def quiet(self) -> None:
        """Wait until no change of bundle is in progress."""
        await self._turns.quiet()

    @property
    def urgent(self) -> bool:
        """Whether a rollback is in progress."""
        return self._turns.urgent

    async def follow(self, folder: Path, urgent: bool) -> None:
        """Serve the bundle that another process made active. Raises DiptychError, OSError or Refusal."""
        async with self._turns.turn(folder.name, urgent):
            if not self.serves(folder):
                await self.switch(Change(folder.name, self.source.followed, hurry=urgent))

    @contextmanager
    def _step(self, shown: str | None, logged: str | None = None) -> Iterator[None]:
        """Show a start-up step in /readyz, and log it when it is slow."""
        self._starting = shown
        loop = asyncio.get_running_loop()
        slow = loop.call_later(SLOW_SECONDS, LOG.warning, "%s, for %g s so far", shown or logged, SLOW_SECONDS)
        try:
            yield
        finally:
            slow.cancel()
            self._starting = None

    def _obstacles(self) -> list[str]:
        """Return the reasons why requests cannot be answered."""
        if self.stopping:
            return ["the service is stopping"]
        if self.current is None:
            return ["no bundle is open yet"]
        if self.current.trouble:
            return [self.current.trouble]
        return [] if self.current.opened else ["the engine ended and is being replaced"]

    async def switch(self, change: Change) -> ActivateResponse:
        """Serve another bundle, within `turn`, and record it in the store. Raises DiptychError, OSError or Refusal."""
        name = change.bundle
        started = time.perf_counter()
        before = self.current
        try:
            generation = await self._change_to(change)
        except Refusal:
            self._metrics.switches.labels("preempted").inc()
            raise
        except Exception as error:
            self._note_failure(name, error)
            raise
        self._failed = None
        self._metrics.switches.labels("fallback" if change.given_up else "done").inc()
        seconds = time.perf_counter() - started
        self._metrics.switch_seconds.observe(seconds)
        LOG.info("bundle %s is served, after %.1f s", generation.name, seconds)
        previous = before.name if before else None
        return ActivateResponse(bundle=generation.name, previous=previous, seconds=round(seconds, 3))

    async def _change_to(self, change: Change) -> Generation:
        generation = await self._turns.load(change.bundle, self._prepare(change))
        try:
            if change.note:
                await self.supervisor.read(partial(change.note, generation.folder))
                self._following.noted(generation.folder)
        except BaseException:
            if generation not in (self.current, self.kept):
                await asyncio.shield(self._retire(generation))
            raise
        if generation is not self.current:
            self._serve(generation, change.given_up)
        return generation

    async def _prepare(self, change: Change) -> Generation:
        """Return an open generation of the bundle; reuse the served or the kept one. Raises BundleError."""
        name = change.bundle
        folder = await self.supervisor.read(partial(self.source.folder, name))
        for one in (self.current, self.kept):
            if one and one.folder == folder and one.healthy:
                return one
        await self.compared.close()  # frees its memory and CPU time
        beside = partial(self._beside, change.hurry)
        return await self._opener.open(name, self._fallback.suspect, beside, partial(self._make_room, name))

    def _open_compared(self, name: str, crashes: Callable[[Generation], None]) -> Coroutine[Any, Any, Generation]:
        return self._opener.open_aside(name, crashes, lambda _: self._asked_lately)

    def _beside(self, hurry: bool, generation: Generation) -> Traffic | None:
        """Return the traffic that loading an engine must not slow down; None when no other generation answers."""
        if self.current is None or self.current is generation or not self.current.healthy:
            return None
        return no_traffic if hurry else self._asked_lately

    def _asked_lately(self) -> bool:
        return self.current is not None and self.current.asked_lately()

    async def _make_room(self, name: str) -> bool:
        """Close the kept generation to free memory; return whether there was one."""
        kept, self.kept = self.kept, None
        if kept is None:
            return False
        LOG.info("bundle %s was closed to free memory for bundle %s", kept.name, name)
        await asyncio.shield(self._retire(kept))  # cancelling the caller does not cancel the closing
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
            former, self.kept = self.kept, former  # the generation kept until now is closed instead
        if former:
            self._retire(former)

    def _retire(self, generation: Generation) -> asyncio.Task[None]:
        task = self.supervisor.retry("generation_closing", generation.close)
        self._closing[task] = generation
        task.add_done_callback(self._closing.pop)
        return task

    def _tell_paused(self) -> None:
        for generation in (self.current, self.kept, self.compared.generation):
            if generation:
                generation.tell_paused()

    def _note_failure(self, name: str, error: Exception) -> None:
        self._failed = f"bundle {name} was not activated: {reason(error)}"
        self._metrics.switches.labels("failed").inc()
        LOG.error("%s", self._failed)

    async def _not_activated(self, name: str, error: Exception) -> Refusal:
        if self.stopping:
            return refused(name, "the service is stopping")
        message = self.public(f"Bundle {name} was not activated: {reason(error)}")
        return Refusal(await self._status_without(name), "not_activated", message)

    async def _status_without(self, name: str) -> int:
        try:
            there = await self.supervisor.read(lambda: self.source.folder(name).is_dir())
        except (DiptychError, OSError):
            return 422
        return 422 if there else 404

    def _depth(self, of: str) -> int:
        return getattr(self.current.batcher, of) if self.current else 0
