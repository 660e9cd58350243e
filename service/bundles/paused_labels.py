"""Read, change and broadcast the paused labels, which are not shown although the bundle has them.

The list is stored beside the bundles, at the URL if there is one. It survives a restart and an empty cache, and applies
to every bundle, every replica and every way to query, see retrieval/store/paused_labels. When it cannot be read, the
last list that was read stays in force: a paused label stays paused.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from retrieval.errors import BundleError, DiptychError
from retrieval.store.paused_labels import PAUSED, parse_paused, read_paused, stamp_of, write_paused
from service.bundles.store_access import StoreAccess
from service.errors import Refusal
from service.observe.supervisor import Supervisor, describe_error

LOG = logging.getLogger("diptych")


class PausedFile:
    """The list of paused labels in a store. Its methods may block; call them in a thread."""

    def __init__(self, store: StoreAccess, max_labels: int) -> None:
        self.ids: tuple[str, ...] = ()
        self._store = store
        self._max_labels = max_labels
        self._stamp: tuple[int, ...] | None = None  # stat values of the file that was read

    def read(self) -> bool:
        """Read the list if the file changed; return whether the ids changed. Raises BundleError."""
        self._store.refresh_paused()
        folder = self._store.local_store.path
        stamp = stamp_of(folder)
        if stamp == self._stamp:
            return False
        before, self.ids = self.ids, read_paused(folder, self._max_labels)
        self._stamp = stamp
        return self.ids != before

    def change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Add ids to the list in the store and remove others. Raises BundleError, and Refusal 422 when it is full."""

        def changed(content: bytes | None) -> str:
            ids = dict.fromkeys([*parse_paused(content, self._store.paused_place), *add])
            for id_ in remove:
                ids.pop(id_, None)
            if len(ids) > self._max_labels:
                excess = f"{len(ids)} labels would be paused; the maximum is {self._max_labels}."
                message = f"{excess} Export a bundle without them."
                raise Refusal(422, "too_many_paused", message)
            return write_paused(ids)

        self._store.amend_paused(changed)
        self.read()


class PausedBroadcaster:
    """The paused labels of the served store, sent to all open generations."""

    def __init__(self, store: StoreAccess, max_labels: int, supervisor: Supervisor) -> None:
        self._store = store
        self._file = PausedFile(store, max_labels)
        self._supervisor = supervisor
        self._lock = asyncio.Lock()
        self._receivers: dict[Callable[[], None], None] = {}
        self._ids: tuple[str, ...] = ()  # the last list that was read
        self._sent: tuple[str, ...] = ()  # the last list that was sent to the receivers

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the paused labels."""
        return self._ids

    def subscribe(self, receiver: Callable[[], None]) -> None:
        """Call `receiver` after each change of the list."""
        self._receivers[receiver] = None

    def unsubscribe(self, receiver: Callable[[], None]) -> None:
        """Stop calling `receiver`."""
        self._receivers.pop(receiver, None)

    async def read(self) -> None:
        """Read the store's list. Raises BundleError when it cannot be read; the last list then stays."""
        async with self._lock:
            self._set_ids(await self._supervisor.read(self._read))
            if self._sent != self._ids:
                self._send()

    async def change(self, add: Sequence[str], remove: Sequence[str]) -> None:
        """Add ids to the store's list and remove others. Raises DiptychError, OSError, or Refusal when it is full."""
        async with self._lock:
            self._ids = await self._supervisor.read(lambda: self._change(add, remove))
            self._send()

    def _read(self) -> tuple[str, ...]:
        self._check_store()
        try:
            self._file.read()
        except (DiptychError, OSError):
            raise
        except Exception as error:
            path = self._store.local_store.path / PAUSED
            raise BundleError(f"{path} cannot be read ({describe_error(error)}). Repair it, or remove it.") from error
        self._check_store()  # the store may have been removed during the read
        return self._file.ids

    def _check_store(self) -> None:
        """Check that the store still exists: a removed store must not unpause labels. Raises BundleError."""
        path = self._store.local_store.path
        if self._ids and self._store.url is None and not (path / "CURRENT").exists():
            raise BundleError(f"{path} cannot be reached, or has no file CURRENT")

    def _change(self, add: Sequence[str], remove: Sequence[str]) -> tuple[str, ...]:
        self._file.change(add, remove)
        return self._file.ids

    def _set_ids(self, ids: tuple[str, ...]) -> None:
        before, self._ids = self._ids, ids
        if ids == before:
            return
        shown = len(set(before) - set(ids))
        if ids:
            LOG.info("%d labels are paused now; %d are shown again", len(ids), shown)
        else:
            LOG.warning("the store's %s is empty or has been removed: %d labels are shown again", PAUSED, shown)

    def _send(self) -> None:
        """Notify the receivers; after a failure, the next read does it again."""
        for receiver in list(self._receivers):
            receiver()
        self._sent = self._ids
