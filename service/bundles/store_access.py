"""Access the store that bundles come from: a folder, or a URL that is read through the local cache.

Nothing is verified here: the engine that will serve a bundle verifies and loads it and checks its golden queries, and
the store is updated after that. An administrator's changes are written to the URL if there is one, so that all replicas
follow them and an empty cache loses nothing. All methods may block; call them in a thread.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval.errors import BadInput, BundleError, Unreachable
from retrieval.store.history import CURRENT, HISTORY, NAMES_IN_HISTORY, previous_in
from retrieval.store.local import Store
from retrieval.store.paused_labels import PAUSED
from retrieval.store.pull import cache_path, mirror_active, mirror_paused, pull
from retrieval.store.remote import Remote
from retrieval.system.progress import Progress
from retrieval.system.urls import as_url

LOG = logging.getLogger("diptych")
MAX_RESOLVED_PATHS = 16  # resolved store folders, which messages to clients must not show


class StoreAccess:
    """The served store. All methods raise BundleError, and Unreachable when the URL does not respond.

    A folder may be reached through symlinks that change (git-sync, release folders), so every call resolves it.
    """

    def __init__(self, place: Path, trusted: Sequence[str]) -> None:
        """Set up the access. Raises BadInput for a file and for a URL that cannot be a store's."""
        self.url = as_url(place)
        if self.url is None and place.is_file():
            raise BadInput(f"{place} is a file. Name the folder that `diptych export --store` wrote to.")
        self.place = str(place) if self.url is None else self.url
        self._path = place.absolute() if self.url is None else cache_path(self.url)
        # the key under which serial numbers are stored
        self._serials_key = str(self._path) if self.url is None else self.url
        self._trusted = trusted
        self._resolved_paths: dict[str, None] = {}  # store folders, the latest last

    @property
    def local_store(self) -> Store:
        """The folder, or the local cache of the URL, with symlinks resolved now."""
        path = Path(os.path.realpath(self._path)) if self.url is None else self._path
        self._resolved_paths.pop(str(path), None)
        self._resolved_paths[str(path)] = None
        for old in list(self._resolved_paths)[:-MAX_RESOLVED_PATHS]:
            self._resolved_paths.pop(old, None)  # another thread may do the same
        return self._store_at(path)

    def active(self) -> str | None:
        """Return the bundle that CURRENT names, at the URL if any. Raises OlderSerial for an older signed bundle."""
        store = self.local_store
        name = store.active() if self.url is None else Remote(self.url).active()
        if name is not None and store.has(name):
            store.check_serial(name)
        return name

    def active_folder(self) -> Path:
        """Return the folder of the bundle that CURRENT names, fetched or not.

        Raises BundleError when the store is gone, and OlderSerial for an older signed bundle.
        """
        if self.url is not None:
            name = Remote(self.url).active()
            store = self.local_store
        else:
            try:
                os.stat(self._path)
            except OSError as error:
                raise BundleError(f"{self._path} cannot be reached: {error.strerror}") from error
            store = self.local_store
            name = store.active()
        if name is None:
            raise BundleError(f"{self._path} has no file CURRENT, which names the active bundle")
        if store.has(name):
            store.check_serial(name)
        return store.path / "bundles" / name

    def folder(self, name: str) -> Path:
        """Return the folder of a bundle in the store, whether or not it exists."""
        return self.local_store.path / "bundles" / name

    def public(self, text: object) -> str:
        """Return a message without the local path of the store, for clients."""
        shown = str(text)
        for place in sorted({str(self._path), *self._resolved_paths}, key=len, reverse=True):
            shown = shown.replace(f"{place}/", "").replace(place, "the store")
        return shown

    def names(self) -> list[str]:
        """Return the names of the store's bundles; only the fetched ones when the URL does not respond."""
        if self.url is None:
            return self.local_store.bundles()
        try:
            return Remote(self.url).bundles()
        except Unreachable as down:
            LOG.warning("%s", down)
            return self.local_store.bundles()

    def fetch(self, name: str | None, is_cancelled: Callable[[], bool] = lambda: False) -> Path:
        """Fetch a bundle (`name`, or the active one) if needed and return its folder.

        A fetched bundle is used when the URL does not respond. A download stops when `is_cancelled` returns True, so
        that it does not delay the next one. Raises BundleError, also in that case.
        """
        store = self.local_store
        if self.url is None:
            if name is None:
                name = self._active_name(store)
                store.check_serial(name)
            return store.bundle_path(name)
        try:
            return store.bundle_path(pull(self.url, store, name, progress=_log_progress(self.url, is_cancelled)))
        except Unreachable as down:
            known = store.active() if name is None else name
            if known is None or not store.has(known):
                raise
            LOG.warning("%s Using bundle %s as it was fetched before.", down, known)
            return store.bundle_path(known)

    def previous(self) -> str | None:
        """Return the bundle that was active before the present one, from the history at the URL if there is one."""
        if self.url is not None:
            remote = Remote(self.url)
            if history := remote.history():
                return previous_in(history, remote.active())
        return self.local_store.previous()

    def activate(self, folder: Path) -> None:
        """Make a served bundle the active one in its store, and at the URL if there is one."""
        name, store = folder.name, self._store_at(folder.parents[1])
        if self.url is None:
            store.activate(name)
            return
        store.check_serial(name)
        remote = Remote(self.url)
        if (active := remote.active()) != name:
            history = remote.history() or ([active] if active else [])
            self._write_active(remote, [*history, name][-NAMES_IN_HISTORY:])
        mirror_active(store, name)

    def record_rollback(self, folder: Path) -> None:
        """Make the previous bundle, which is served again, the active one, also at the URL if there is one."""
        name, store = folder.name, self._store_at(folder.parents[1])
        if self.url is None:
            store.rollback(verified=name)
            return
        remote = Remote(self.url)
        history = remote.history()
        places = [place for place, one in enumerate(history[:-1]) if one == name]
        store.allow_older(name)
        self._write_active(remote, history[: places[-1] + 1] if places else [name])
        mirror_active(store, name)

    def record_followed(self, folder: Path) -> None:
        """Note that the bundle that CURRENT names is served. Nothing is written to a store in a folder."""
        store = self._store_at(folder.parents[1])
        if self.url is None:
            store.record_use(folder.name)
        else:
            mirror_active(store, folder.name)

    @property
    def paused_place(self) -> str:
        """Path or URL of the list of paused labels."""
        return f"{self.local_store.path if self.url is None else self.url}/{PAUSED}"

    def refresh_paused(self) -> None:
        """Fetch the list of paused labels from the URL; keep the last one when the URL does not respond."""
        if self.url is None:
            return
        try:
            mirror_paused(Remote(self.url), self.local_store)
        except Unreachable as down:
            LOG.warning("%s The last list of paused labels stays in force.", down)

    def amend_paused(self, change: Callable[[bytes | None], str]) -> None:
        """Replace the list of paused labels by the result of `change`, which gets its bytes or None.

        At a URL, one of two simultaneous changes may be lost, because object stores have no lock.
        """
        if self.url is None:
            self.local_store.amend(PAUSED, change)
        else:
            remote = Remote(self.url)
            remote.write(PAUSED, change(remote.paused()).encode())

    def _store_at(self, path: Path) -> Store:
        return Store(path, lambda folder, trusted: None, trusted=self._trusted, identity=self._serials_key)

    def _write_active(self, remote: Remote, history: list[str]) -> None:
        remote.write(HISTORY, ("\n".join(history) + "\n").encode())
        remote.write(CURRENT, f"{history[-1]}\n".encode())

    def _active_name(self, store: Store) -> str:
        name = store.active()
        if name is None:
            known = ", ".join(store.bundles()) or "none yet"
            raise BundleError(
                f"{self.place} has no active bundle (bundles: {known}). "
                "Export one with `diptych export CHECKPOINT --store STORE --activate`."
            )
        return name


def _log_progress(url: str, is_cancelled: Callable[[], bool]) -> Progress:
    """Return a callback that logs the progress of a download in quarters. It raises BundleError to stop it."""
    quarters = 0

    def progress(done: int, total: int) -> None:
        nonlocal quarters
        if is_cancelled():
            raise BundleError(f"the download from {url} was cancelled")
        if done * 4 >= total * quarters:
            quarters = done * 4 // total + 1
            LOG.info("fetched %d of %d MB from %s", done >> 20, total >> 20, url)

    return progress
