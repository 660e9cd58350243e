"""Manage the bundles of one service: serve one, switch to another, roll back, compare, pause labels, report readiness.

A request belongs to the generation that admitted it until it is answered, so no answer mixes two bundles. When a
generation is replaced because its engines keep dying, its successor answers its requests from the beginning.
"""

import asyncio
import logging
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
from service.bundles.comparison import Comparison
from service.bundles.generation import Generation, GenerationObserver
from service.bundles.generation_set import GenerationSet
from service.bundles.loader import BundleLoader
from service.bundles.paused_labels import PausedBroadcaster
from service.bundles.rollback import AutomaticRollback
from service.bundles.store_access import StoreAccess
from service.bundles.store_follower import StoreFollower
from service.bundles.switch_queue import SwitchQueue, refused
from service.bundles.switcher import Change, Switcher, SwitchResult, failure_reason
from service.engine.protocol import Query
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from service.settings import Settings

LOG = logging.getLogger("diptych")
PAUSE_SECONDS = 2.0  # that a change of the paused labels waits for the unknown ids
SLOW_SECONDS = 30.0  # a start-up step that takes longer is logged


class ReadinessReport(NamedTuple):
    """Whether requests are answered, from which bundle, and notes for the operator."""

    ready: bool
    bundle: str | None
    detail: str


class ServedState(NamedTuple):
    """State of the service that cached answers depend on: generation, version of its paused labels, query identity."""

    generation: int
    pause_version: int
    query_identity: int


class BundleManager:
    """The bundles of one service. It connects the parts that open, serve, switch, compare and follow bundles."""

    def __init__(self, settings: Settings, metrics: Metrics, supervisor: Supervisor) -> None:
        """Connect the parts. Raises BadInput for a URL that cannot be a store's."""
        self.supervisor = supervisor
        self.store = store = StoreAccess(settings.store, trusted_keys(settings.trusted_keys))
        self.paused = paused = PausedBroadcaster(store, settings.max_paused, supervisor)
        self._settings = settings
        self._metrics = metrics
        self._generations = generations = GenerationSet(settings, metrics, supervisor)
        self._loader = loader = BundleLoader(settings, metrics, store, paused, supervisor)
        self._queue = queue = SwitchQueue(supervisor)
        self.comparison = Comparison(self._open_compared, metrics, settings.compare_seconds, supervisor)
        self._switcher = switcher = Switcher(
            generations, queue, loader, self.comparison, self, store, metrics, supervisor
        )
        self._follower = StoreFollower(generations, queue, switcher, store, paused, metrics, supervisor)
        self._rollback = AutomaticRollback(settings, generations, queue, switcher, store, supervisor)
        self._startup_step: str | None = None  # the start-up step in progress
        metrics.set_queue_functions(
            lambda: self.current.batcher.waiting_queries if self.current else 0,
            lambda: self.current.unfinished if self.current else 0,
        )

    @property
    def current(self) -> Generation | None:
        """The served generation."""
        return self._generations.current

    @property
    def kept(self) -> Generation | None:
        """The generation that was served before and is kept for a rollback."""
        return self._generations.kept

    @property
    def draining(self) -> list[Generation]:
        """Replaced generations that finish the requests they admitted."""
        return self._generations.draining

    @property
    def preparing(self) -> str | None:
        """Name of the bundle that is being prepared."""
        return self._queue.preparing

    @property
    def stopping(self) -> bool:
        """Whether the service is stopping."""
        return self._queue.is_stopping

    @property
    def serving(self) -> str | None:
        """Name of the served bundle."""
        return self.current.name if self.current else None

    @property
    def state(self) -> ServedState | None:
        """State that cached answers depend on; None before a bundle is served."""
        served = self.current
        return ServedState(served.number, served.pause_version, served.query_identity) if served else None

    async def open_active(self) -> Generation:
        """Serve the store's active bundle and follow later changes of it.

        Raises DiptychError or OSError when it cannot be opened, and Refusal when the service stops first.
        """
        with self._step("the list of paused labels is being read"):
            await self.paused.read()
        while self.current is None:
            with self._step("the active bundle is being looked up"):
                folder = await self.supervisor.read(partial(self.store.fetch, None))
            try:
                with self._step(None, f"bundle {folder.name} is being loaded"):
                    await self._switcher.open_first(folder)
            except Refusal:
                if self.stopping:
                    raise
                await self._queue.wait_until_idle()  # pre-empted by an administrator's change
        if self._settings.watch_seconds and not self.stopping:
            self._follower.start(folder, self._settings.watch_seconds)
        return self.current

    def admit(self, query: Query, seconds: float | None = None, caller: Caller = ANYONE) -> PendingRequest:
        """Queue a request with the served generation for at most `seconds`. Raises Refusal 422, 429 or 503."""
        if self.current is None:
            raise errors.unavailable(f"The service is not ready: {self.readiness().detail}.")
        return self.current.admit(query, seconds, caller)

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

    async def activate(self, name: str) -> SwitchResult:
        """Serve another bundle without interruption. Pre-empts a bundle that is being loaded.

        Raises Refusal with the reason when it fails; the present bundle then stays.
        """
        try:
            with self._follower.admin_change():
                async with self._queue.change(name):
                    return await self._switcher.switch(Change(name, partial(self._record, self.store.activate)))
        except (DiptychError, OSError) as error:
            raise await self._not_activated(name, error) from error

    async def rollback(self) -> SwitchResult:
        """Serve the bundle that was active before, immediately if it was kept. Pre-empts a bundle that is being loaded.

        Raises Refusal as `activate` does.
        """
        name = None
        try:
            name = await self.supervisor.read(self.store.previous)
            if name is None:
                message = "There is no earlier bundle to roll back to; activate one."
                raise Refusal(409, "no_earlier_bundle", message)
            with self._follower.admin_change():
                async with self._queue.change(name, urgent=True):
                    name = await self.supervisor.read(self.store.previous) or name  # it may have changed by now
                    record = partial(self._record, self.store.record_rollback)
                    return await self._switcher.switch(Change(name, record, urgent=True))
        except (DiptychError, OSError) as error:
            raise await self._not_activated(name or "before the present one", error) from error

    async def compare(self, name: str, query: Query, seconds: float | None = None) -> PendingRequest:
        """Queue a request with any bundle of the store; open it if needed. Raises Refusal."""
        for generation in (self.current, self.kept):
            if generation and generation.name == name:
                return generation.admit(query, seconds, ADMINISTRATOR)
        if self.preparing or self.stopping:
            reason = f"bundle {self.preparing} is being prepared" if self.preparing else "the service is stopping"
            raise Refusal(409, "busy_switching", f"Bundle {name} was not opened for comparison: {reason}.")
        try:
            return (await self.comparison.open(name)).admit(query, seconds, ADMINISTRATOR)
        except (DiptychError, OSError) as error:
            status = await self._status_of_failure(name)
            message = f"Bundle {name} was not opened for comparison: {failure_reason(error)}"
            raise Refusal(status, "not_compared", self.public(message)) from error

    async def pause(self, add: Sequence[str], remove: Sequence[str]) -> list[str] | None:
        """Change the paused labels; return the paused ids that the served bundle does not have.

        Returns None when the engine has not answered in time. Raises Refusal when the list is full or cannot be stored.
        """
        try:
            await self.paused.change(add, remove)
        except (DiptychError, OSError) as error:
            raise Refusal(422, "not_paused", self.public(f"Nothing was changed: {error}")) from error
        return await self.current.wait_for_unknown_ids(PAUSE_SECONDS) if self.current else None

    def readiness(self) -> ReadinessReport:
        """Return whether requests are answered, and notes for the operator."""
        obstacle = self._obstacle()
        preparing = f"bundle {self.preparing} is being prepared" if self.preparing else None
        shortage = self.current.shortage if self.current else None
        notes = [obstacle, shortage, self._startup_step, preparing, self._switcher.failure]
        notes += [*self._follower.problems, *self.supervisor.failing]
        detail = "; ".join(self.public(note) for note in notes if note) or "serving"
        return ReadinessReport(obstacle is None, self.serving, detail)

    def stop(self) -> None:
        """Report not ready and refuse changes of bundle. Requests are still answered."""
        self._queue.stop()
        self.comparison.cancel()
        self._follower.stop()
        self._rollback.stop()
        self.supervisor.stop_reading()

    async def close(self) -> None:
        """Answer the admitted requests, then end every engine."""
        closing = self._generations.close_all()
        await asyncio.wait([*closing, self.supervisor.retry("comparison_closing", self.comparison.close)])

    def public(self, text: object) -> str:
        """Return a message without the local path of the store, for clients."""
        return self.store.public(text)

    def on_open(self, generation: Generation) -> None:
        """Show a generation in the metrics."""
        self._metrics.add_generation(generation)

    def on_engine_death(self, generation: Generation) -> None:
        """Count the replacement of an engine."""
        self._metrics.restarts.inc()

    def on_crash_loop(self, generation: Generation) -> None:
        """Roll back if the generation is the served one."""
        self._rollback.start(generation)

    def on_closed(self, generation: Generation) -> None:
        """Remove a generation from the metrics."""
        self._metrics.remove_generation(generation)

    def _open_compared(self, name: str, observer: GenerationObserver) -> Coroutine[Any, Any, Generation]:
        policy = self._generations.policy_beside_current()
        return self._loader.open_for_comparison(name, observer, lambda _: policy)

    async def _record(self, write: Callable[[Path], object], folder: Path) -> None:
        """Record a change of bundle in the store."""
        await self.supervisor.read(partial(write, folder))
        self._follower.note_active(folder)

    @contextmanager
    def _step(self, shown: str | None, logged: str | None = None) -> Iterator[None]:
        """Show a start-up step in /readyz, and log it when it is slow."""
        self._startup_step = shown
        loop = asyncio.get_running_loop()
        slow = loop.call_later(SLOW_SECONDS, LOG.warning, "%s, for %g s so far", shown or logged, SLOW_SECONDS)
        try:
            yield
        finally:
            slow.cancel()
            self._startup_step = None

    def _obstacle(self) -> str | None:
        """Return why requests cannot be answered; None when they can."""
        if self.stopping:
            return "the service is stopping"
        if self.current is None:
            return "no bundle is open yet"
        if self.current.failure:
            return self.current.failure
        return None if self.current.info else "the engine ended and is being replaced"

    async def _not_activated(self, name: str, error: Exception) -> Refusal:
        if self.stopping:
            return refused(name, "the service is stopping")
        message = self.public(f"Bundle {name} was not activated: {failure_reason(error)}")
        return Refusal(await self._status_of_failure(name), "not_activated", message)

    async def _status_of_failure(self, name: str) -> int:
        """Return 404 when the store has no bundle of this name, else 422."""
        try:
            exists = await self.supervisor.read(lambda: self.store.folder(name).is_dir())
        except (DiptychError, OSError):
            return 422
        return 422 if exists else 404
