"""Fetch bundles from a URL into a local store.

The cache has one store per URL. Its active bundle is the one that was active at the URL at the last request. A download
is staged without a name until it is complete and verified.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from retrieval.bundle.manifest import MANIFEST, MANIFEST_LIMIT, read_manifest
from retrieval.bundle.signatures import LIMIT as SIGNATURE_LIMIT
from retrieval.bundle.signatures import SIGNATURE
from retrieval.errors import BundleError, Unreachable
from retrieval.store.cache_folder import cache_folder
from retrieval.store.download import Progress, RemoteBundle, download, downloading
from retrieval.store.local import Store
from retrieval.store.paused_labels import PAUSED, parse_paused, read_paused, write_paused
from retrieval.store.remote import Remote, blaming, checked_url
from retrieval.system.safe_open import bundle_folder_open, read_small


def cache_store(url: str, cache: Path | str | None = None, trusted: Sequence[str] = ()) -> Store:
    """Return the cache's store for a URL: in `cache`, in DIPTYCH_CACHE, or in the user's cache folder.

    Bundles are verified when they are fetched, and again when they are opened. Raises BundleError.
    """
    url = checked_url(url)
    try:
        root = cache_folder(cache)
    except OSError as error:
        raise BundleError(f"{url} cannot be fetched: {error.strerror}.") from error
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", url)[-48:].strip("-.")
    folder = root / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    return Store(folder, trusted=trusted, place=url)


def at_hand(
    url: str,
    name: str | None = None,
    *,
    cache: Path | str | None = None,
    trusted: Sequence[str] = (),
    progress: Progress | None = None,
    tell: Callable[[str], object] | None = None,
) -> Path:
    """Return the local folder of a URL's active bundle, or of the bundle `name`; fetch it if the cache lacks it.

    If the URL cannot be reached but the cache has the bundle, return that and call `tell` with a message (default: a
    Python warning). Raises BundleError, and Unreachable if the cache does not have it either.
    """
    try:
        return fetch(url, name, cache=cache, trusted=trusted, progress=progress)
    except Unreachable as down:
        store = cache_store(url, cache, trusted)
        known = store.active() if name is None else name
        if known is None or not store.has(known):
            raise
        (tell or _warn)(f"{down} Going on with bundle {known!r} as it was fetched before; nothing newer is seen.")
        return store.bundle_path(known)


def fetch(
    url: str,
    name: str | None = None,
    *,
    cache: Path | str | None = None,
    trusted: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Fetch as `at_hand` does, but raise Unreachable whenever the URL cannot be reached."""
    store = cache_store(url, cache, trusted)
    remote = Remote(url)
    found = _pull(remote, store, name, trusted, progress)
    mirror_paused(remote, store)
    if name is None:
        follow(store, found)
    return store.bundle_path(found)


def follow(store: Store, name: str) -> None:
    """Activate in the cache's store the bundle that is active at the URL. Raises BundleError."""
    if store.active() == name:
        store.follow(name)
    else:
        Store(store.path, lambda folder: None, trusted=store.trusted, place=store.place).activate(name)


def mirror_paused(remote: Remote, store: Store) -> None:
    """Copy the URL's list of paused labels into the cache's store. Raises BundleError."""
    content = remote.paused()
    ids = parse_paused(content, remote.place(PAUSED))
    with suppress(BundleError):  # a damaged list is replaced
        if ids == read_paused(store.path):
            return
    try:
        store.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{store.path} cannot be made ({error.strerror}). Check its path and permissions.") from error
    store.amend(PAUSED, lambda _: write_paused(ids))


def pull(
    url: str,
    store: Store,
    name: str | None = None,
    *,
    trusted: Sequence[str] = (),
    progress: Progress | None = None,
) -> str:
    """Fetch a URL's active bundle, or the bundle `name`, into a local store unless it is there; return its name.

    Does not activate it. With `trusted` keys, one of them must have signed it. Several processes may pull at once: one
    fetches, the others wait. Raises BundleError, and Unreachable if the URL cannot be reached.
    """
    return _pull(Remote(url), store, name, trusted, progress)


def _pull(remote: Remote, store: Store, name: str | None, trusted: Sequence[str], progress: Progress | None) -> str:
    active = name is None
    name, folder = remote.find(name)
    source = RemoteBundle(remote, name, folder, remote.manifest_bytes(folder))
    if not _holds(store, source):
        with downloading(store):
            if not _holds(store, source):
                download(source, store, trusted, progress or (lambda done, total: None))
    elif trusted:
        _renew_signature(source, store, trusted)
    read_manifest(store.bundle_path(name), trusted)
    if active:
        store.check_serial(name)
    return name


def _holds(store: Store, source: RemoteBundle) -> bool:
    """Return whether a store has this bundle. Raises BundleError if another bundle has its name."""
    if not store.has(source.name):
        return False
    folder = store.bundle_path(source.name)
    if _read(folder, MANIFEST, MANIFEST_LIMIT) != source.manifest:
        raise BundleError(
            f"{folder} is another bundle than {source.place}. Publish that under a name of its own, or remove {folder}."
        )
    return True


def _renew_signature(source: RemoteBundle, store: Store, trusted: Sequence[str]) -> None:
    """Copy a signature that is newer than the fetched one. Raises BundleError unless a trusted key made it."""
    signature = source.remote.signature(source.folder)
    if signature is None or _read(store.bundle_path(source.name), SIGNATURE, SIGNATURE_LIMIT) == signature:
        return
    with TemporaryDirectory() as folder, blaming(source.place, folder):
        Path(folder, MANIFEST).write_bytes(source.manifest)
        Path(folder, SIGNATURE).write_bytes(signature)
        read_manifest(Path(folder), trusted)
    store.attach_signature(source.name, signature.decode("ascii"))


def _read(folder: Path, name: str, limit: int) -> bytes | None:
    """Read a small file of a bundle; None if it does not exist. Raises BundleError."""
    try:
        with bundle_folder_open(folder) as descriptor:
            return read_small(folder / name, limit, descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read ({error.strerror}). Check its permissions.") from error


def _warn(said: str) -> None:
    warnings.warn(said, RuntimeWarning, stacklevel=5)  # the line that called Retriever.open
