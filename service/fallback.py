"""Go back to the bundle before when a bundle's engines keep ending."""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from retrieval.errors import DiptychError
from service.errors import Refusal
from service.generation import Generation
from service.settings import Settings

if TYPE_CHECKING:
    from service.generations import Generations

LOG = logging.getLogger("diptych")


class Fallback:
    """Gives up a bundle whose engines keep ending, for the one that was good before it."""

    def __init__(self, generations: "Generations", settings: Settings) -> None:
        self._generations = generations
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._suspect: Generation | None = None  # that the task gives up

    def suspect(self, generation: Generation) -> None:
        """A bundle's engines keep ending: go back, unless that is being done already."""
        generations = self._generations
        if generation is not generations.current or generations.stopping or generations.urgent:
            return
        if self._task and not self._task.done():
            if self._suspect is generation:
                return  # it may be waiting for a store that does not answer
            self._task.cancel()
        self._suspect = generation
        self._task = generations.supervisor.retry("fall_back", partial(self._fall_back, generation))

    def stop(self) -> None:
        """Go back no more."""
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
            return  # the reason has been noted, and the engine is still being replaced

    def _earlier(self, than: str) -> str | None:
        """A bundle that was good before this one: kept, or served, or the store's previous one."""
        generations = self._generations
        if (kept := generations.kept) and kept.name != than:
            return kept.name
        source = generations.source
        known = source.store.bundles()
        candidates = [generations.before, source.previous()]
        return next((name for name in candidates if name in known and name != than), None)
