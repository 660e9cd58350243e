"""Serve the bundle that other processes make active, also when the store is reached through a symlink that changes."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from retrieval.bundle.manifest import MANIFEST
from retrieval.errors import DiptychError, Unreachable
from service.bundles.generation import Generation
from service.bundles.generation_set import GenerationSet
from service.bundles.paused_labels import PausedBroadcaster
from service.bundles.store_access import StoreAccess
from service.bundles.store_watcher import StoreWatcher
from service.bundles.switch_queue import SwitchQueue
from service.bundles.switcher import Change, Switcher
from service.engine.pool.spawning import CannotStart
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor

LOG = logging.getLogger("diptych")
FIRST_BACKOFF, LONGEST_BACKOFF = 5.0, 60.0  # seconds before a retry when the store or the system failed


class StoreFollower:
    """Watch the store and serve its new active bundle. A broken bundle is tried once; an outage is retried."""

    def __init__(
        self,
        generations: GenerationSet,
        queue: SwitchQueue,
        switcher: Switcher,
        store: StoreAccess,
        paused: PausedBroadcaster,
        metrics: Metrics,
        supervisor: Supervisor,
    ) -> None:
        self._generations = generations
        self._queue = queue
        self._switcher = switcher
        self._store = store
        self._supervisor = supervisor
        self._watcher = StoreWatcher(self._read_active, paused.read, self._start_following, supervisor, metrics)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def problems(self) -> list[str]:
        """One sentence per part of the store that cannot be read."""
        return self._watcher.problems

    def start(self, active: Path, seconds: float) -> None:
        """Check every `seconds`. `active` is the bundle's folder that CURRENT named at the start."""
        if self._watcher.active is None:
            self._watcher.active = active
        self._add_task(self._supervisor.repeat("store_watch", self._watcher.check, seconds))

    def note_active(self, folder: Path) -> None:
        """Note that the service itself made this bundle active."""
        self._watcher.active = folder

    @contextmanager
    def admin_change(self) -> Iterator[None]:
        """Ignore the present value of CURRENT while an administrator changes the bundle."""
        self._watcher.begin_admin_change()
        try:
            yield
        finally:
            self._watcher.end_admin_change()

    def stop(self) -> None:
        """Stop checking and following."""
        for task in self._tasks:
            task.cancel()

    def _add_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_active(self) -> Path | None:
        """Return the folder that CURRENT names; None when the service changed its bundle during the read."""
        served = self._generations.current
        folder = await self._supervisor.read(self._store.active_folder)
        return folder if self._generations.current is served else None

    def _start_following(self, folder: Path) -> None:
        if not self._queue.is_stopping:
            self._add_task(self._supervisor.retry("store_follow", partial(self._follow, folder)))

    async def _follow(self, folder: Path) -> None:
        """Serve a bundle that another process made active, for as long as CURRENT names it."""
        generations, backoff = self._generations, FIRST_BACKOFF
        if generations.current and not generations.serves(folder):
            await self._move(generations.current, folder)
        if generations.serves(folder) and not self._queue.preparing:
            return  # otherwise the bundle that is being prepared is out of date
        LOG.info("the store's active bundle is %s now", folder.name)
        urgent = folder.name == generations.previous_name  # a rollback
        while self._watcher.active == folder:
            try:
                await self._switch_to(folder, urgent)
            except Refusal:  # pre-empted by another change: check CURRENT again after it
                await self._queue.wait_until_idle()
                self._watcher.try_again(folder)
            except (Unreachable, CannotStart, OSError):
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
                continue
            except DiptychError:
                pass  # the reason is in the log and in /readyz; the present bundle stays
            return

    async def _switch_to(self, folder: Path, urgent: bool) -> None:
        """Serve the bundle in this folder. Raises DiptychError, OSError or Refusal."""
        async with self._queue.change(folder.name, urgent):
            if not self._generations.serves(folder):
                await self._switcher.switch(Change(folder.name, self._record, urgent=urgent))

    async def _record(self, folder: Path) -> None:
        await self._supervisor.read(partial(self._store.record_followed, folder))
        self.note_active(folder)

    async def _move(self, served: Generation, folder: Path) -> None:
        """Use this folder for the next engine of the served bundle, if it holds the same bundle."""
        if served.name == folder.name and await self._supervisor.read(
            partial(_have_equal_manifests, served.folder, folder)
        ):
            LOG.info("bundle %s is served, and is in another folder of the store now", served.name)
            served.folder = folder


def _have_equal_manifests(first: Path, second: Path) -> bool:
    """Return whether two folders hold the same bundle."""
    try:
        return (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()
    except OSError:
        return False
