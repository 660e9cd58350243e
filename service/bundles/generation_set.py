"""The open generations of a service: the served one, the one kept for rollback, and those that are draining."""

import asyncio
import logging
from pathlib import Path

from service.bundles.generation import Generation
from service.engine.load_policy import FULL_SPEED, LoadPolicy
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from service.settings import Settings

LOG = logging.getLogger("diptych")


class GenerationSet:
    """The generations that serve, served before, or will serve requests."""

    def __init__(self, settings: Settings, metrics: Metrics, supervisor: Supervisor) -> None:
        self.current: Generation | None = None
        self.kept: Generation | None = None
        self.previous_name: str | None = None  # the bundle that was served before
        self._settings = settings
        self._metrics = metrics
        self._supervisor = supervisor
        self._closing: dict[asyncio.Task[None], Generation] = {}

    @property
    def draining(self) -> list[Generation]:
        """Replaced generations that finish the requests they admitted."""
        return list(self._closing.values())

    def serves(self, folder: Path) -> bool:
        """Return whether the bundle in this folder is served."""
        return self.current is not None and self.current.folder == folder

    def open_generation(self, folder: Path) -> Generation | None:
        """Return the healthy served or kept generation of the bundle in this folder, if there is one."""
        for generation in (self.current, self.kept):
            if generation and generation.folder == folder and generation.healthy:
                return generation
        return None

    def is_busy(self) -> bool:
        """Return whether the served generation has or recently had requests."""
        return self.current is not None and self.current.is_busy()

    def policy_beside_current(self) -> LoadPolicy:
        """Return the policy for an engine that must not slow down the served one."""
        return LoadPolicy(True, self._settings.load_share, self.is_busy)

    def choose_policy(self, generation: Generation, urgent: bool) -> LoadPolicy:
        """Return how the next engine of a generation is loaded.

        It loads at full speed when no other generation answers requests. An urgent change replaces a faulty bundle, so
        it is not throttled.
        """
        if self.current is None or self.current is generation or not self.current.healthy:
            return FULL_SPEED
        return LoadPolicy(low_priority=True) if urgent else self.policy_beside_current()

    def serve(self, generation: Generation, faulty: Generation | None = None) -> None:
        """Admit requests to this generation from now on. It takes over the requests of the `faulty` generation."""
        former, self.current = self.current, generation
        if self.kept is generation:
            self.kept = None
        self._metrics.serving(generation.name, generation.number)
        if former is None:
            return
        if former.name != generation.name:
            self.previous_name = None if faulty else former.name
        if faulty or not former.healthy:
            former.drain_to(generation)
        elif self._settings.keep_previous:
            former, self.kept = self.kept, former  # the generation kept until now is closed instead
        if former:
            self.retire(former)

    def retire(self, generation: Generation) -> asyncio.Task[None]:
        """Close a generation in the background; the task ends when its engine has ended."""
        task = self._supervisor.retry("generation_closing", generation.close)
        self._closing[task] = generation
        task.add_done_callback(self._closing.pop)
        return task

    async def close_kept(self, name: str) -> bool:
        """Close the kept generation to free memory for bundle `name`; return whether there was one."""
        kept, self.kept = self.kept, None
        if kept is None:
            return False
        LOG.info("bundle %s was closed to free memory for bundle %s", kept.name, name)
        await asyncio.shield(self.retire(kept))  # cancelling the caller does not cancel the closing
        return True

    def close_all(self) -> list[asyncio.Task[None]]:
        """Close every generation; return the tasks that do so."""
        for generation in (self.current, self.kept):
            if generation:
                self.retire(generation)
        return list(self._closing)
