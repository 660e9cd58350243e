"""Where bundles come from: a store's folder, or a store behind a URL, read through the cache's local one.

Nothing is proved here: each bundle is verified, loaded and asked its golden queries by the engine that will serve it,
and the store's notes are made when that has gone well. What an administrator changes is written to the URL where there
is one: all replicas follow it, and an empty cache loses nothing. All methods may take long; call them aside.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval.cache import cache_store, follow, mirror_paused, pull
from retrieval.download import Progress
from retrieval.errors import BadInput, BundleError, Unreachable
from retrieval.paused import PAUSED
from retrieval.remote import CURRENT, HISTORY, Remote
from retrieval.store import REMEMBERED, Store, before
from retrieval.urls import as_url

LOG = logging.getLogger("diptych")


PLACES_REMEMBERED = 16  # folders of a store whose link has been changed; messages about them still hide them


class Source:
    """The store that is served. All methods raise BundleError, and Unreachable where nothing answers at a URL.

    A folder may be reached through symlinks that change (git-sync, release folders): it is resolved at every call.
    """

    def __init__(self, place: Path, trusted: Sequence[str]) -> None:
        """Raises BadInput for a URL that cannot be one of a store, and for a file."""
        self.url = as_url(place)
        if self.url is None and place.is_file():
            raise BadInput(f"{place} is a file. Name the folder that `diptych export --store` wrote to.")
        self.place = str(place) if self.url is None else self.url
        self._path = place.absolute() if self.url is None else cache_store(self.url).path
        self._known_as = str(self._path) if self.url is None else self.url  # where serial numbers are remembered
        self._trusted = trusted
        self._places: dict[str, None] = {}  # where the path has led lately

    @property
    def store(self) -> Store:
        """The store as it is reached now, symlinks resolved."""
        path = Path(os.path.realpath(self._path)) if self.url is None else self._path
        self._places.pop(str(path), None)
        self._places[str(path)] = None
        for place in list(self._places)[:-PLACES_REMEMBERED]:
            self._places.pop(place, None)  # another thread may do the same
        return self._store_at(path)

    def active(self) -> str | None:
        """What CURRENT names, at the URL where there is one. Raises OlderSerial for one that must not be followed."""
        store = self.store
        name = store.active() if self.url is None else Remote(self.url).active()
        if name is not None and store.has(name):
            store.check_serial(name)
        return name

    def look(self) -> Path:
        """Folder of the bundle that CURRENT names now, fetched or not.

        Raises BundleError where the store has gone, and OlderSerial for a bundle that must not be followed.
        """
        if self.url is not None:
            name = Remote(self.url).active()
            store = self.store
        else:
            try:
                os.stat(self._path)
            except OSError as error:
                raise BundleError(f"{self._path} cannot be reached: {error.strerror}") from error
            store = self.store
            name = store.active()
        if name is None:
            raise BundleError(f"{self._path} has no file CURRENT, which names the active bundle")
        if store.has(name):
            store.check_serial(name)
        return store.path / "bundles" / name

    def folder(self, name: str) -> Path:
        """Folder that a bundle has in the store, there or not."""
        return self.store.path / "bundles" / name

    def public(self, text: object) -> str:
        """A sentence for a client: where the store lies on this machine is not a client's business."""
        shown = str(text)
        for place in sorted({str(self._path), *self._places}, key=len, reverse=True):
            shown = shown.replace(f"{place}/", "").replace(place, "the store")
        return shown

    def names(self) -> list[str]:
        """The store's bundles; those that are here where its URL does not answer."""
        if self.url is None:
            return self.store.bundles()
        try:
            return Remote(self.url).bundles()
        except Unreachable as down:
            LOG.warning("%s", down)
            return self.store.bundles()

    def bring(self, name: str | None, given_up: Callable[[], bool] = lambda: False) -> Path:
        """Have a bundle here: `name`, or the active one; returns its folder. What is here needs no URL that answers.

        A download ends when `given_up` says so: it would keep the next one waiting. Raises BundleError then, too.
        """
        store = self.store
        if self.url is None:
            if name is None:
                name = self._active_here(store)
                store.check_serial(name)
            return store.bundle_path(name)
        try:
            return store.bundle_path(
                pull(self.url, store, name, trusted=self._trusted, progress=_logged(self.url, given_up))
            )
        except Unreachable as down:
            known = store.active() if name is None else name
            if known is None or not store.has(known):
                raise
            LOG.warning("%s Going on with bundle %s as it was fetched before.", down, known)
            return store.bundle_path(known)

    def previous(self) -> str | None:
        """The bundle that was active before the present one; at the URL, if that keeps a history."""
        if self.url is not None:
            remote = Remote(self.url)
            if history := remote.history():
                return before(history, remote.active())
        return self.store.previous()

    def note(self, folder: Path) -> None:
        """Make a bundle that is served the active one of the store that it lies in, at the URL where there is one."""
        name, store = folder.name, self._store_at(folder.parents[1])
        if self.url is None:
            store.activate(name)
            return
        store.check_serial(name)
        remote = Remote(self.url)
        if (active := remote.active()) != name:
            history = remote.history() or ([active] if active else [])
            self._write_active(remote, [*history, name][-REMEMBERED:])
        follow(store, name)

    def note_rollback(self, folder: Path) -> None:
        """Make the bundle of before, which is served, the active one again, at the URL where there is one."""
        name, store = folder.name, self._store_at(folder.parents[1])
        if self.url is None:
            store.rollback(proved=name)
            return
        remote = Remote(self.url)
        history = remote.history()
        places = [place for place, one in enumerate(history[:-1]) if one == name]
        store.allow_older(name)
        self._write_active(remote, history[: places[-1] + 1] if places else [name])
        follow(store, name)

    def followed(self, folder: Path) -> None:
        """Take note that what CURRENT names is served; nothing is written to a store in a folder."""
        store = self._store_at(folder.parents[1])
        if self.url is None:
            store.follow(folder.name)
        else:
            follow(store, folder.name)

    @property
    def paused_place(self) -> str:
        """Where the list of paused labels lies."""
        return f"{self.store.path if self.url is None else self.url}/{PAUSED}"

    def refresh_paused(self) -> None:
        """Bring the list of paused labels from the URL; where that does not answer, the one from before holds."""
        if self.url is None:
            return
        try:
            mirror_paused(Remote(self.url), self.store)
        except Unreachable as down:
            LOG.warning("%s The labels that were paused before stay so.", down)

    def amend_paused(self, change: Callable[[bytes | None], str]) -> None:
        """Replace the list of paused labels by what `change` makes of its bytes, None where there is none.

        At a URL, of two changes in the same moment one may be lost: object stores have no lock.
        """
        if self.url is None:
            self.store.amend(PAUSED, change)
        else:
            remote = Remote(self.url)
            remote.write(PAUSED, change(remote.paused()).encode())

    def _store_at(self, path: Path) -> Store:
        return Store(path, prove=lambda folder: None, trusted=self._trusted, place=self._known_as)

    def _write_active(self, remote: Remote, history: list[str]) -> None:
        remote.write(HISTORY, ("\n".join(history) + "\n").encode())
        remote.write(CURRENT, f"{history[-1]}\n".encode())

    def _active_here(self, store: Store) -> str:
        name = store.active()
        if name is None:
            known = ", ".join(store.bundles()) or "none yet"
            raise BundleError(
                f"{self.place} has no active bundle (bundles: {known}). "
                "Export one with `diptych export CKPT --store STORE --activate`."
            )
        return name


def _logged(url: str, given_up: Callable[[], bool]) -> Progress:
    """Says in the log that something is fetched, each time another quarter has come. Raises BundleError."""
    quarters = 0

    def progress(done: int, total: int) -> None:
        nonlocal quarters
        if given_up():
            raise BundleError(f"the download from {url} was given up")
        if done * 4 >= total * quarters:
            quarters = done * 4 // total + 1
            LOG.info("fetched %d of %d MB from %s", done >> 20, total >> 20, url)

    return progress
