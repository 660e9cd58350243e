"""Fetch bundles from a URL into a local store.

The cache has one store per URL. Its active bundle is the one that was active at the URL at the last request. A download
is staged without a name until it is complete and verified.
"""

import hashlib
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from retrieval.bundle.manifest import MANIFEST, MANIFEST_LIMIT, read_manifest
from retrieval.bundle.signatures import LIMIT as SIGNATURE_LIMIT
from retrieval.bundle.signatures import SIGNATURE
from retrieval.errors import BundleError, Unreachable
from retrieval.store.cache_folder import cache_folder
from retrieval.store.download import RemoteBundle, download, download_lock
from retrieval.store.local import Store
from retrieval.store.paused_labels import PAUSED, parse_paused, read_paused, write_paused
from retrieval.store.remote import Remote, checked_url, rewrite_paths
from retrieval.system.progress import Progress, no_progress
from retrieval.system.safe_open import bundle_folder_open, read_small


def cache_path(url: str, cache: Path | str | None = None) -> Path:
    """Return the folder of a URL's store in `cache`, in DIPTYCH_CACHE, or in the user's cache folder.

    Raises BundleError for a user without a home folder, and BadInput for an invalid URL.
    """
    url = checked_url(url)
    try:
        root = cache_folder(cache)
    except OSError as error:
        raise BundleError(f"{url} cannot be fetched: {error.strerror}.") from error
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", url)[-48:].strip("-.")
    return root / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def ensure_local(
    url: str,
    store: Store,
    name: str | None = None,
    *,
    progress: Progress | None = None,
    on_warning: Callable[[str], object] | None = None,
) -> Path:
    """Return the folder of a URL's active bundle, or of the bundle `name`, in its cache store; fetch it if needed.

    If the URL cannot be reached but the store has the bundle, return that and call `on_warning` with a message
    (default: a Python warning). Raises BundleError, and Unreachable if the store does not have it either.
    """
    try:
        return fetch(url, store, name, progress=progress)
    except Unreachable as outage:
        fetched = store.active() if name is None else name
        if fetched is None or not store.has(fetched):
            raise
        (on_warning or _warn)(f"{outage} Bundle {fetched!r} from the cache is used; newer bundles are not seen.")
        return store.bundle_path(fetched)


def fetch(url: str, store: Store, name: str | None = None, *, progress: Progress | None = None) -> Path:
    """Fetch as `ensure_local` does, but raise Unreachable whenever the URL cannot be reached."""
    remote = Remote(url)
    fetched = _pull(remote, store, name, progress)
    mirror_paused(remote, store)
    if name is None:
        mirror_active(store, fetched)
    return store.bundle_path(fetched)


def pull(url: str, store: Store, name: str | None = None, *, progress: Progress | None = None) -> str:
    """Fetch a URL's active bundle, or the bundle `name`, into a local store if needed; return its name.

    Does not activate it. If the store has trusted keys, one of them must have signed it. Several processes may pull at
    once: one fetches, the others wait. Raises BundleError, and Unreachable if the URL cannot be reached.
    """
    return _pull(Remote(url), store, name, progress)


def mirror_active(store: Store, name: str) -> None:
    """Activate in the cache's store the bundle that is active at the URL. Raises BundleError."""
    if store.active() == name:
        store.record_use(name)
    else:
        store.activate(name, verified=True)  # it was verified when it was fetched, and is verified when it is opened


def mirror_paused(remote: Remote, store: Store) -> None:
    """Copy the URL's list of paused labels into the cache's store. Raises BundleError."""
    content = remote.paused()
    ids = parse_paused(content, remote.url_of(PAUSED))
    with suppress(BundleError):  # a damaged list is replaced
        if ids == read_paused(store.path):
            return
    try:
        store.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"{store.path} cannot be created ({error.strerror}). Check its path and permissions."
        ) from error
    store.amend(PAUSED, lambda _: write_paused(ids))


def _pull(remote: Remote, store: Store, name: str | None, progress: Progress | None) -> str:
    is_active = name is None
    name, folder = remote.find(name)
    source = RemoteBundle(remote, name, folder, remote.manifest_bytes(folder))
    if not _has_bundle(store, source):
        with download_lock(store):
            if not _has_bundle(store, source):
                download(source, store, progress or no_progress)
    elif store.trusted:
        _renew_signature(source, store)
    read_manifest(store.bundle_path(name), store.trusted)
    if is_active:
        store.check_serial(name)
    return name


def _has_bundle(store: Store, source: RemoteBundle) -> bool:
    """Return whether a store has this bundle. Raises BundleError if another bundle has its name."""
    if not store.has(source.name):
        return False
    folder = store.bundle_path(source.name)
    if _read_small_file(folder, MANIFEST, MANIFEST_LIMIT) != source.manifest:
        raise BundleError(
            f"{folder} and {source.url} are different bundles of the same name. Publish that one under another name, "
            f"or remove {folder}."
        )
    return True


def _renew_signature(source: RemoteBundle, store: Store) -> None:
    """Copy a signature that is newer than the fetched one. Raises BundleError unless a trusted key made it."""
    signature = source.remote.signature(source.folder)
    current = _read_small_file(store.bundle_path(source.name), SIGNATURE, SIGNATURE_LIMIT)
    if signature is None or current == signature:
        return
    with TemporaryDirectory() as folder, rewrite_paths(folder, source.url):
        Path(folder, MANIFEST).write_bytes(source.manifest)
        Path(folder, SIGNATURE).write_bytes(signature)
        read_manifest(Path(folder), store.trusted)
    store.attach_signature(source.name, signature.decode("ascii"))


def _read_small_file(folder: Path, name: str, limit: int) -> bytes | None:
    """Read a small file of a bundle; None if it does not exist. Raises BundleError."""
    try:
        with bundle_folder_open(folder) as descriptor:
            return read_small(folder / name, limit, descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read ({error.strerror}). Check its permissions.") from error


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)  # the line that called `open_bundle`
