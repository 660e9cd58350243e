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


class Source:
    """The store that is served. All methods raise BundleError, and Unreachable where nothing answers at a URL."""

    def __init__(self, place: Path, trusted: Sequence[str]) -> None:
        """Raises BadInput for a URL that cannot be one of a store, and for a file."""
        self.url = as_url(place)
        if self.url is None and place.is_file():
            raise BadInput(f"{place} is a file. Name the folder that `diptych export --store` wrote to.")
        self.place = str(place) if self.url is None else self.url
        known_as = os.path.abspath(place) if self.url is None else self.url
        path = place.resolve() if self.url is None else cache_store(self.url).path
        self.store = Store(path, prove=lambda folder: None, trusted=trusted, place=known_as)
        self._trusted = trusted

    def active(self) -> str | None:
        """What CURRENT names, at the URL where there is one. Raises OlderSerial for one that must not be followed."""
        name = self.store.active() if self.url is None else Remote(self.url).active()
        if name is not None and self.store.has(name):
            self.store.check_serial(name)
        return name

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
            if name is None:
                name = self._active_here()
                self.store.check_serial(name)
            return name
        try:
            return pull(self.url, self.store, name, trusted=self._trusted, progress=_logged(self.url))
        except Unreachable as down:
            known = self.store.active() if name is None else name
            if known is None or not self.store.has(known):
                raise
            LOG.warning("%s Going on with bundle %s as it was fetched before.", down, known)
            return known

    def previous(self) -> str | None:
        """The bundle that was active before the present one; at the URL, if that keeps a history."""
        if self.url is not None:
            remote = Remote(self.url)
            if history := remote.history():
                return before(history, remote.active())
        return self.store.previous()

    def note(self, name: str) -> None:
        """Make a bundle that is served the active one, at the URL where there is one."""
        if self.url is None:
            self.store.activate(name)
            return
        self.store.check_serial(name)
        remote = Remote(self.url)
        if (active := remote.active()) != name:
            history = remote.history() or ([active] if active else [])
            self._write_active(remote, [*history, name][-REMEMBERED:])
        follow(self.store, name)

    def note_rollback(self, name: str) -> None:
        """Make the bundle of before, which is served, the active one again, at the URL where there is one."""
        if self.url is None:
            self.store.rollback(proved=name)
            return
        remote = Remote(self.url)
        history = remote.history()
        places = [place for place, one in enumerate(history[:-1]) if one == name]
        self.store.allow_older(name)
        self._write_active(remote, history[: places[-1] + 1] if places else [name])
        follow(self.store, name)

    def followed(self, name: str) -> None:
        """Take note that what CURRENT names is served; nothing is written to a store in a folder."""
        if self.url is None:
            self.store.follow(name)
        else:
            follow(self.store, name)

    @property
    def paused_place(self) -> str:
        """Where the list of paused labels lies."""
        return f"{self.place}/{PAUSED}"

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

    def _write_active(self, remote: Remote, history: list[str]) -> None:
        remote.write(HISTORY, ("\n".join(history) + "\n").encode())
        remote.write(CURRENT, f"{history[-1]}\n".encode())

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
