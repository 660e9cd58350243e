"""Where bundles come from: a store's folder, or a store behind a URL, read through the cache's local one.

Nothing is proved here: each bundle is verified, loaded and asked its golden queries by the engine that will serve it,
and the store's notes are made when that has gone well. All methods may take long; call them aside.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval.cache import Progress, cache_store, pull
from retrieval.errors import BadInput, BundleError, Unreachable
from retrieval.remote import Remote
from retrieval.store import Store
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
        return Store(path, prove=lambda folder: None)

    def active(self) -> str | None:
        """What CURRENT names, at the URL where there is one."""
        return self.store.active() if self.url is None else Remote(self.url).active()

    def look(self) -> Path:
        """Folder of the bundle that CURRENT names now, fetched or not. Raises BundleError where the store has gone."""
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
            return store.bundle_path(name or self._active_here(store))
        try:
            return store.bundle_path(
                pull(self.url, store, name, trusted=self._trusted, progress=_logged(self.url, given_up))
            )
        except Unreachable as down:
            known = store.active() if name is None else name
            if known is None or known not in store.bundles():
                raise
            LOG.warning("%s Going on with bundle %s as it was fetched before.", down, known)
            return store.bundle_path(known)

    def note(self, folder: Path) -> None:
        """Make a bundle that is served the active one of the store that it lies in."""
        Store(folder.parents[1], prove=lambda one: None).activate(folder.name)

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
