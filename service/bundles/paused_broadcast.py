"""Synchronize the paused labels between the store and all engines.

When the list cannot be read, the last one that was read stays in force: a paused label stays paused.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from retrieval.errors import BundleError, DiptychError
from retrieval.store.paused_labels import PAUSED
from service.bundles.paused_labels import Paused
from service.bundles.store_access import Source
from service.observe.supervisor import Supervisor, described

LOG = logging.getLogger("diptych")


class PausedSync:
    """The paused labels of the served store."""

    def __init__(self, source: Source, most: int, tell: Callable[[], None], supervisor: Supervisor) -> None:
        """Set up the list. `most` is the largest number of labels; `tell` sends the list to the engines."""
        self._source = source
        self._paused = Paused(source, most)
        self._tell = tell
        self._supervisor = supervisor
        self._lock = asyncio.Lock()
        self._ids: tuple[str, ...] = ()  # the last list that was read
        self._told: tuple[str, ...] = ()  # the last list that was sent to the engines

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the paused labels."""
        return self._ids

    async def read(self) -> None:
        """Read the store's list. Raises BundleError when it cannot be read; the last list then stays."""
        async with self._lock:
            self._take_over(await self._supervisor.read(self._read))
            self._tell_engines()

    async def change(self, add: Sequence[str], remove: Sequence[str]) -> None:
        """Add ids to the store's list and remove others. Raises DiptychError, OSError, or Refusal when it is full."""
        async with self._lock:
            self._ids = await self._supervisor.read(lambda: self._change(add, remove))
            self._tell_engines(always=True)

    def _read(self) -> tuple[str, ...]:
        self._check_reached()
        try:
            self._paused.read()
        except (DiptychError, OSError):
            raise
        except Exception as error:
            path = self._source.store.path / PAUSED
            raise BundleError(f"{path} cannot be read ({described(error)}). Repair it, or remove it.") from error
        self._check_reached()  # the store may have been removed during the read
        return tuple(self._paused.ids)

    def _check_reached(self) -> None:
        """Check that the store still exists: a removed store must not unpause labels. Raises BundleError."""
        path = self._source.store.path
        if self._ids and self._source.url is None and not (path / "CURRENT").exists():
            raise BundleError(f"{path} cannot be reached, or has no file CURRENT")

    def _change(self, add: Sequence[str], remove: Sequence[str]) -> tuple[str, ...]:
        self._paused.change(add, remove)
        return tuple(self._paused.ids)

    def _take_over(self, ids: tuple[str, ...]) -> None:
        before, self._ids = self._ids, ids
        if ids == before:
            return
        shown = len(set(before) - set(ids))
        if ids:
            LOG.info("%d labels are paused now; %d are shown again", len(ids), shown)
        else:
            LOG.warning("the store's %s is empty or has been removed: %d labels are shown again", PAUSED, shown)

    def _tell_engines(self, always: bool = False) -> None:
        """Send the list to the engines; after a failure, the next read sends it again."""
        if always or self._told != self._ids:
            self._tell()
            self._told = self._ids
