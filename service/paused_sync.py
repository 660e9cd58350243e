"""Keep the list of paused labels as the store has it, and every engine in step with it.

Where the list cannot be read, the last one that could be holds: a paused label stays paused.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from retrieval.errors import BundleError, DiptychError
from retrieval.paused import PAUSED
from service.pausing import Paused
from service.source import Source
from service.supervisor import Supervisor, described

LOG = logging.getLogger("diptych")


class PausedSync:
    """The paused labels of the store that is served, wherever its path leads now."""

    def __init__(self, source: Source, most: int, tell: Callable[[], None], supervisor: Supervisor) -> None:
        """`tell` sends the list to the engines."""
        self._source = source
        self._paused = Paused(source, most)
        self._tell = tell
        self._supervisor = supervisor
        self._lock = asyncio.Lock()
        self._ids: tuple[str, ...] = ()  # of the last list that could be read
        self._told: tuple[str, ...] = ()  # what the engines were told last

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the labels that must not be shown."""
        return self._ids

    async def read(self) -> None:
        """Take over the store's list. Raises BundleError where it cannot be read; then the last one holds."""
        async with self._lock:
            self._take_over(await self._supervisor.read(self._read))
            self._tell_engines()

    async def change(self, add: Sequence[str], remove: Sequence[str]) -> None:
        """Add ids to the store's list and remove others. Raises DiptychError, OSError, and Refusal when it is full."""
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
        self._check_reached()  # it may have gone while it was read
        return tuple(self._paused.ids)

    def _check_reached(self) -> None:
        """Raise BundleError for a store that is gone: it must not look like a store without a list."""
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
        """Send the list; where that fails, the next look sends it again."""
        if always or self._told != self._ids:
            self._tell()
            self._told = self._ids
