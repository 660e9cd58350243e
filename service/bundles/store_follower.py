"""Serve the bundle that other processes make active, also when the store is reached through a symlink that changes."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.bundle.manifest import MANIFEST
from retrieval.errors import DiptychError, Unreachable
from service.bundles.generation import Generation
from service.bundles.store_watcher import Watch
from service.engine.client import CannotStart
from service.errors import Refusal
from service.observe.metrics import Metrics

if TYPE_CHECKING:
    from service.bundles.manager import Generations

LOG = logging.getLogger("diptych")
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds before a retry when the store or the system failed


class Following:
    """Watch the store and serve its new active bundle. A broken bundle is tried once; an outage is retried."""

    def __init__(self, generations: "Generations", metrics: Metrics) -> None:
        self._generations = generations
        self._supervisor = generations.supervisor
        self._source = generations.source
        self._watch = Watch(self._look, generations.paused.read, self._begin_following, self._supervisor, metrics)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def troubles(self) -> list[str]:
        """One sentence per part of the store that cannot be read."""
        return self._watch.troubles

    def begin(self, opened: Path, seconds: float) -> None:
        """Check every `seconds`. `opened` is the bundle's folder that CURRENT named at the start."""
        if self._watch.seen is None:
            self._watch.seen = opened
        self._keep(self._supervisor.repeat("store_watch", self._watch.check, seconds))

    def noted(self, folder: Path) -> None:
        """Note that the service itself made this bundle active."""
        self._watch.seen = folder

    @contextmanager
    def ordered(self) -> Iterator[None]:
        """Ignore the present value of CURRENT during an administrator's order."""
        self._watch.begin_order()
        try:
            yield
        finally:
            self._watch.end_order()

    def stop(self) -> None:
        """Stop checking and following."""
        for task in self._tasks:
            task.cancel()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self) -> Path | None:
        """Return the folder that CURRENT names; None when the service changed its bundle during the read."""
        served = self._generations.current
        folder = await self._supervisor.read(self._source.look)
        return folder if self._generations.current is served else None

    def _begin_following(self, folder: Path) -> None:
        if not self._generations.stopping:
            self._keep(self._supervisor.retry("store_follow", partial(self._follow, folder)))

    async def _follow(self, folder: Path) -> None:
        """Serve a bundle that another process made active, for as long as CURRENT names it."""
        generations, pause = self._generations, FIRST_PAUSE
        if generations.current and not generations.serves(folder):
            await self._move(generations.current, folder)
        if generations.serves(folder) and not generations.preparing:
            return  # otherwise the bundle that is being prepared is out of date
        LOG.info("the store's active bundle is %s now", folder.name)
        urgent = folder.name == generations.before  # a rollback
        while self._watch.seen == folder:
            try:
                await generations.follow(folder, urgent)
            except Refusal:  # pre-empted by another change: check CURRENT again after it
                await generations.quiet()
                self._watch.try_again(folder)
            except (Unreachable, CannotStart, OSError):
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            except DiptychError:
                pass  # the reason is in the log and in /readyz; the present bundle stays
            return

    async def _move(self, served: Generation, folder: Path) -> None:
        """Use this folder for the next engine of the served bundle, if it holds the same bundle."""
        if served.name == folder.name and await self._supervisor.read(partial(_alike, served.folder, folder)):
            LOG.info("bundle %s is served, and lies in another folder of the store now", served.name)
            served.folder = folder


def _alike(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same bundle, that is, equal manifests."""
    try:
        return (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
    except OSError:
        return False
