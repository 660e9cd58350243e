"""Find the folder of the bundle to open, from a store, a bundle or a URL."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from retrieval.bundle.manifest import MANIFEST
from retrieval.errors import BundleError
from retrieval.store.local import Store
from retrieval.store.pull import at_hand
from retrieval.store.urls import as_url
from retrieval.system.safe_open import BUNDLES


class Place(NamedTuple):
    """The folder of the bundle to open, and the folder of its store; None if it is in no store.

    `followed` is the store if the bundle was found through its CURRENT.
    """

    folder: Path
    store: Path | None
    followed: Store | None = None


def bundle_at(place: Path | str, cache: Path | str | None, trusted: Sequence[str]) -> Place:
    """Find the bundle that a caller names. Raises BundleError."""
    if (url := as_url(place)) is not None:
        folder = at_hand(url, cache=cache, trusted=trusted)
        return Place(folder, folder.parent.parent)
    path = Path(place)
    if not (path / BUNDLES).is_dir():
        if not (path / MANIFEST).exists():
            raise BundleError(f"{path} is neither a store (no folder bundles) nor a bundle (no {MANIFEST}).")
        return _in_store(path)
    store = Store(path.resolve(), trusted=trusted, place=os.path.abspath(path))
    name = store.active()
    if name is None:
        known = ", ".join(store.bundles()) or "none yet"
        raise BundleError(f"{path} has no active bundle; it has: {known}. Activate one of them.")
    store.check_serial(name)
    return Place(store.bundle_path(name), store.path, store)


def _in_store(path: Path) -> Place:
    """Return the place of one bundle's folder."""
    whole = Path(os.path.abspath(path))
    if whole.parent.name != BUNDLES:
        whole = whole.resolve()
    if whole.parent.name != BUNDLES:
        return Place(whole, None)
    store = whole.parent.parent.resolve()
    return Place(store / BUNDLES / whole.name, store)
