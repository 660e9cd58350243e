"""Where bundles come from: a store's folder, or a store behind a URL, read through the cache's local one.

Nothing is proved here: each bundle is verified, loaded and asked its golden queries by the engine that will serve it,
and the store's notes are made when that has gone well. All methods may take long; call them aside.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from retrieval.cache import Progress, cache_store, pull
from retrieval.errors import BadInput, BundleError, Unreachable
from retrieval.remote import Remote
from retrieval.store import Store
from retrieval.urls import as_url

LOG = logging.getLogger("diptych")


class Source:
    """The store that is served. All methods raise BundleError, and Unreachable where nothing answers at a URL."""

    def __init__(self, place: Path, trusted: Sequence[str]) -> None:
        """Raises BadInput for a URL that cannot be one of a store, and for a file."""
        self.url = as_url(place)
        if self.url is None and place.is_file():
            raise BadInput(f"{place} is a file. Name the folder that `diptych export --store` wrote to.")
        self.place = str(place) if self.url is None else self.url
        path = place.resolve() if self.url is None else cache_store(self.url).path
        self.store = Store(path, prove=lambda folder: None)
        self._trusted = trusted

    def active(self) -> str | None:
        """What CURRENT names, at the URL where there is one."""
        return self.store.active() if self.url is None else Remote(self.url).active()

    def names(self) -> list[str]:
        """The store's bundles; those that are here where its URL does not answer."""
        if self.url is None:
            return self.store.bundles()
        try:
            return Remote(self.url).bundles()
        except Unreachable as down:
            LOG.warning("%s", down)
            return self.store.bundles()

    def bring(self, name: str | None) -> str:
        """Have a bundle here: `name`, or the active one; returns its name. What is here needs no URL that answers."""
        if self.url is None:
            return name or self._active_here()
        try:
            return pull(self.url, self.store, name, trusted=self._trusted, progress=_logged(self.url))
        except Unreachable as down:
            known = self.store.active() if name is None else name
            if known is None or known not in self.store.bundles():
                raise
            LOG.warning("%s Going on with bundle %s as it was fetched before.", down, known)
            return known

    def note(self, name: str) -> None:
        """Make a bundle that is served the active one, here."""
        self.store.activate(name)

    def _active_here(self) -> str:
        name = self.store.active()
        if name is None:
            known = ", ".join(self.store.bundles()) or "none yet"
            raise BundleError(
                f"{self.place} has no active bundle (bundles: {known}). "
                "Export one with `diptych export CKPT --store STORE --activate`."
            )
        return name


def _logged(url: str) -> Progress:
    """Says in the log that something is fetched, each time another quarter has come."""
    quarters = 0

    def progress(done: int, total: int) -> None:
        nonlocal quarters
        if done * 4 >= total * quarters:
            quarters = done * 4 // total + 1
            LOG.info("fetched %d of %d MB from %s", done >> 20, total >> 20, url)

    return progress
