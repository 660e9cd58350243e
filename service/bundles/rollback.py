"""Roll back to the previous bundle when the engines of the served one keep dying."""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from retrieval.errors import DiptychError
from service.bundles.generation import Generation
from service.errors import Refusal
from service.settings import Settings

if TYPE_CHECKING:
    from service.bundles.manager import Generations

LOG = logging.getLogger("diptych")


class Fallback:
    """Replace a bundle whose engines keep dying by the one that worked before it."""

    def __init__(self, generations: "Generations", settings: Settings) -> None:
        self._generations = generations
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._suspect: Generation | None = None  # the generation that the task replaces

    def suspect(self, generation: Generation) -> None:
        """Start the rollback from a bundle whose engines keep dying, unless one is in progress."""
        generations = self._generations
        if generation is not generations.current or generations.stopping or generations.urgent:
            return
        if self._task and not self._task.done():
            if self._suspect is generation:
                return  # the task may be waiting for a store that does not respond
            self._task.cancel()
        self._suspect = generation
        self._task = generations.supervisor.retry("fall_back", partial(self._fall_back, generation))

    def stop(self) -> None:
        """Cancel the rollback in progress."""
        if self._task:
            self._task.cancel()

    async def _fall_back(self, generation: Generation) -> None:
        generations, settings = self._generations, self._settings
        try:
            name = await generations.supervisor.read(partial(self._earlier, generation.name))
        except (DiptychError, OSError) as error:
            LOG.error("the store does not say which bundle is the one before: %s", error)
            return
        if name is None or generation is not generations.current:
            return
        why = f"bundle {generation.name} was given up: {settings.crashes} engines ended in {settings.crash_seconds:g} s"
        LOG.error("%s; going back to bundle %s", why, name)
        try:
            await generations.give_up(generation, name, why)
        except (DiptychError, OSError, Refusal):
            return  # the reason is in the log, and the engine is still being replaced

    def _earlier(self, than: str) -> str | None:
        """Return the bundle to roll back to: the kept, the last served or the store's previous one."""
        generations = self._generations
        if (kept := generations.kept) and kept.name != than:
            return kept.name
        source = generations.source
        known = source.store.bundles()
        candidates = [generations.before, source.previous()]
        return next((name for name in candidates if name in known and name != than), None)
