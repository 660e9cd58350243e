"""Bundles behind a URL, brought into a local store, where everything else that is done with bundles is done.

The cache has such a store for each URL; its active bundle is the one that was active at the URL when that was last
asked. What is fetched lies aside, without a name, until it is whole and proved.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from retrieval.cache_folder import cache_folder
from retrieval.download import Progress, RemoteBundle, download, downloading
from retrieval.errors import BundleError, Unreachable
from retrieval.manifest import MANIFEST, MANIFEST_LIMIT, read_manifest
from retrieval.nofollow import bundle_folder_open, read_small
from retrieval.paused import PAUSED, parse_paused, read_paused, write_paused
from retrieval.remote import Remote, blaming, checked_url
from retrieval.signatures import LIMIT as SIGNATURE_LIMIT
from retrieval.signatures import SIGNATURE
from retrieval.store import Store


def cache_store(url: str, cache: Path | str | None = None, trusted: Sequence[str] = ()) -> Store:
    """The cache's store for a URL: in `cache`, or the folder that DIPTYCH_CACHE names, or the user's cache folder.

    What comes into it was proved when it came, and whoever opens it compares its files with the manifest again.
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
    """The folder of a bundle behind a URL, fetched where the cache has it not: of the active one, or of `name`.

    Where nothing answers at the URL but the cache holds what was asked for, that is returned, and `tell` (default: a
    Python warning) is told so. Raises BundleError, and Unreachable where there is nothing to go on with.
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
    """As `at_hand`, but a URL where nothing answers is an error always."""
    store = cache_store(url, cache, trusted)
    remote = Remote(url)
    found = _pull(remote, store, name, trusted, progress)
    mirror_paused(remote, store)
    if name is None:
        follow(store, found)
    return store.bundle_path(found)


def follow(store: Store, name: str) -> None:
    """Make a bundle that is active at a URL the active one of the cache's store. Raises BundleError."""
    if store.active() == name:
        store.follow(name)
    else:
        Store(store.path, lambda folder: None, trusted=store.trusted, place=store.place).activate(name)


def mirror_paused(remote: Remote, store: Store) -> None:
    """Make the cache's list of paused labels that of the URL, which every way to query obeys. Raises BundleError."""
    content = remote.paused()
    ids = parse_paused(content, remote.place(PAUSED))
    if ids == read_paused(store.path):
        return
    try:
        store.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{store.path} cannot be made ({error.strerror}). Check its path and rights.") from error
    store.amend(PAUSED, lambda _: write_paused(ids))


def pull(
    url: str,
    store: Store,
    name: str | None = None,
    *,
    trusted: Sequence[str] = (),
    progress: Progress | None = None,
) -> str:
    """Bring a bundle into a local store that has it not: the active one, or the one called `name`; returns its name.

    It is not activated. With `trusted` keys one of them must have signed it. Several processes may pull at once: one
    fetches, the others wait for it. Raises BundleError, and Unreachable where nothing answers.
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
    """Whether a store has this very bundle. BundleError where another one has its name: names are for good."""
    if not store.has(source.name):
        return False
    folder = store.bundle_path(source.name)
    if _read(folder, MANIFEST, MANIFEST_LIMIT) != source.manifest:
        raise BundleError(
            f"{folder} is another bundle than {source.place}. Publish that under a name of its own, or remove {folder}."
        )
    return True


def _renew_signature(source: RemoteBundle, store: Store, trusted: Sequence[str]) -> None:
    """Take over a signature that was made after the bundle had come here, if it is one to be trusted."""
    signature = source.remote.signature(source.folder)
    if signature is None or _read(store.bundle_path(source.name), SIGNATURE, SIGNATURE_LIMIT) == signature:
        return
    with TemporaryDirectory() as folder, blaming(source.place, folder):
        Path(folder, MANIFEST).write_bytes(source.manifest)
        Path(folder, SIGNATURE).write_bytes(signature)
        read_manifest(Path(folder), trusted)
    store.attach_signature(source.name, signature.decode("ascii"))


def _read(folder: Path, name: str, limit: int) -> bytes | None:
    """A small file of a bundle; None where there is none."""
    try:
        with bundle_folder_open(folder) as descriptor:
            return read_small(folder / name, limit, descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read ({error.strerror}). Check its rights.") from error


def _warn(said: str) -> None:
    warnings.warn(said, RuntimeWarning, stacklevel=5)  # the line that called Retriever.open
