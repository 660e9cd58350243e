"""Roll back to the previous bundle when the engines of the served one keep dying."""

import asyncio
import logging
from functools import partial

from retrieval.errors import DiptychError
from service.bundles.generation import Generation
from service.bundles.generation_set import GenerationSet
from service.bundles.store_access import StoreAccess
from service.bundles.switch_queue import SwitchQueue
from service.bundles.switcher import Change, Switcher
from service.errors import Refusal
from service.observe.supervisor import Supervisor
from service.settings import Settings

LOG = logging.getLogger("diptych")


class AutomaticRollback:
    """Replace a bundle whose engines keep dying by the one that worked before it."""

    def __init__(
        self,
        settings: Settings,
        generations: GenerationSet,
        queue: SwitchQueue,
        switcher: Switcher,
        store: StoreAccess,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._generations = generations
        self._queue = queue
        self._switcher = switcher
        self._store = store
        self._supervisor = supervisor
        self._task: asyncio.Task[None] | None = None
        self._faulty: Generation | None = None  # the generation that the task replaces

    def start(self, generation: Generation) -> None:
        """Start the rollback from a bundle whose engines keep dying, unless one is in progress."""
        if generation is not self._generations.current or self._queue.is_stopping or self._queue.is_urgent:
            return
        if self._task and not self._task.done():
            if self._faulty is generation:
                return  # the task may be waiting for a store that does not respond
            self._task.cancel()
        self._faulty = generation
        self._task = self._supervisor.retry("fall_back", partial(self._roll_back, generation))

    def stop(self) -> None:
        """Cancel the rollback in progress."""
        if self._task:
            self._task.cancel()

    async def _roll_back(self, generation: Generation) -> None:
        settings = self._settings
        try:
            name = await self._supervisor.read(partial(self._previous_bundle, generation.name))
        except (DiptychError, OSError) as error:
            LOG.error("the previous bundle cannot be read from the store: %s", error)
            return
        if name is None or generation is not self._generations.current:
            return
        reason = (
            f"bundle {generation.name} was given up: {settings.crashes} engines ended in {settings.crash_seconds:g} s"
        )
        LOG.error("%s; rolling back to bundle %s", reason, name)
        try:
            async with self._queue.change(name, urgent=True):
                if generation is self._generations.current:
                    await self._switcher.switch(Change(name, None, faulty=generation, urgent=True))
                    self._switcher.failure = f"{reason}; bundle {name} is served until another is activated"
        except (DiptychError, OSError, Refusal):
            return  # the reason is in the log, and the engine is still being replaced

    def _previous_bundle(self, faulty: str) -> str | None:
        """Return the bundle to roll back to: the kept, the last served or the store's previous one."""
        if (kept := self._generations.kept) and kept.name != faulty:
            return kept.name
        stored = self._store.local_store.bundles()
        candidates = [self._generations.previous_name, self._store.previous()]
        return next((name for name in candidates if name in stored and name != faulty), None)
