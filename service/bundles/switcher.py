"""Switch to another bundle: fetch → memory check → load, warm, check → record in the store → serve → drain → close."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from retrieval.errors import DiptychError
from service.bundles.comparison import Comparison
from service.bundles.generation import Generation, GenerationObserver
from service.bundles.generation_set import GenerationSet
from service.bundles.loader import BundleLoader
from service.bundles.store_access import StoreAccess
from service.bundles.switch_queue import SwitchQueue
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor, described

LOG = logging.getLogger("diptych")


class Change(NamedTuple):
    """A change of the served bundle."""

    bundle: str
    record: Callable[[Path], Awaitable[None]] | None  # records the change in the store; gets the bundle's folder
    faulty: Generation | None = None  # the generation to give up; the new one takes over its requests
    urgent: bool = False  # the served bundle is faulty: load at low priority, but without a CPU throttle


class SwitchResult(NamedTuple):
    """The bundle that is served, the one that was served before, and the seconds that the switch took."""

    bundle: str
    previous: str | None
    seconds: float


class Switcher:
    """Prepare bundles and serve them."""

    def __init__(
        self,
        generations: GenerationSet,
        queue: SwitchQueue,
        loader: BundleLoader,
        comparison: Comparison,
        observer: GenerationObserver,
        store: StoreAccess,
        metrics: Metrics,
        supervisor: Supervisor,
    ) -> None:
        """Set up the switcher. `observer` receives the events of the generations that it opens."""
        self.failure: str | None = None  # why the last switch failed, or why a rollback was automatic
        self._generations = generations
        self._queue = queue
        self._loader = loader
        self._comparison = comparison
        self._observer = observer
        self._store = store
        self._metrics = metrics
        self._supervisor = supervisor

    async def open_first(self, folder: Path) -> None:
        """Serve the first bundle of this process. Raises DiptychError, OSError or Refusal."""
        name = folder.name
        async with self._queue.change(name):
            try:
                generation = await self._queue.load(name, self._prepare(Change(name, None)))
            except DiptychError as error:
                self.failure = f"bundle {name} could not be opened: {error}"
                raise
            self._generations.serve(generation)
            await self._supervisor.read(partial(self._store.record_followed, generation.folder))

    async def switch(self, change: Change) -> SwitchResult:
        """Serve another bundle and record it in the store. Call it within `SwitchQueue.change`.

        Raises DiptychError, OSError or Refusal; the present bundle then stays.
        """
        started = time.perf_counter()
        former = self._generations.current
        try:
            generation = await self._change_to(change)
        except Refusal:
            self._metrics.switches.labels("preempted").inc()
            raise
        except Exception as error:
            self._note_failure(change.bundle, error)
            raise
        self.failure = None
        self._metrics.switches.labels("fallback" if change.faulty else "done").inc()
        seconds = time.perf_counter() - started
        self._metrics.switch_seconds.observe(seconds)
        LOG.info("bundle %s is served, after %.1f s", generation.name, seconds)
        return SwitchResult(generation.name, former.name if former else None, round(seconds, 3))

    async def _change_to(self, change: Change) -> Generation:
        generations = self._generations
        generation = await self._queue.load(change.bundle, self._prepare(change))
        try:
            if change.record:
                await change.record(generation.folder)
        except BaseException:
            if generation not in (generations.current, generations.kept):
                await asyncio.shield(generations.retire(generation))
            raise
        if generation is not generations.current:
            generations.serve(generation, change.faulty)
        return generation

    async def _prepare(self, change: Change) -> Generation:
        """Return an open generation of the bundle; reuse the served or the kept one. Raises BundleError."""
        name, generations = change.bundle, self._generations
        folder = await self._supervisor.read(partial(self._store.folder, name))
        if generation := generations.open_generation(folder):
            return generation
        await self._comparison.close()  # frees its memory and CPU time
        return await self._loader.open(
            name,
            self._observer,
            partial(generations.choose_policy, urgent=change.urgent),
            partial(generations.close_kept, name),
        )

    def _note_failure(self, name: str, error: Exception) -> None:
        self.failure = f"bundle {name} was not activated: {failure_reason(error)}"
        self._metrics.switches.labels("failed").inc()
        LOG.error("%s", self.failure)


def failure_reason(error: Exception) -> str:
    """Return the reason for a failed change of bundle, as a clause."""
    if isinstance(error, OSError):
        return f"the store cannot be used ({error})"
    return str(error) if isinstance(error, DiptychError) else described(error)
