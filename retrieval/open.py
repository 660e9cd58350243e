"""Open the bundle that a path or URL names: a store's active bundle, or one bundle."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrieval.bundle.manifest import MANIFEST, read_manifest
from retrieval.errors import BundleError
from retrieval.sandboxed_opening import verify_in_subprocess
from retrieval.store.local import Store
from retrieval.store.paused_labels import read_paused
from retrieval.store.pull import cache_path, ensure_local
from retrieval.store.remote import checked_url
from retrieval.system.safe_open import BUNDLES
from retrieval.system.urls import as_url

if TYPE_CHECKING:
    from retrieval.retriever import Retriever


class BundleLocation(NamedTuple):
    """The folder of a bundle, and the folder of its store; None if it is in no store.

    `active_in` is the store whose CURRENT named the bundle; None if the bundle was named directly.
    """

    folder: Path
    store: Path | None
    active_in: Store | None = None


def open_bundle(
    path: Path | str,
    *,
    threads: int | None = None,
    search_threads: int | None = None,
    provider: str = "cpu",
    trusted: Sequence[str] = (),
    cache: Path | str | None = None,
    low_priority: bool = False,
    paused: Sequence[str] | None = None,
    deferred: bool = False,
    index_sockets: Sequence[int] = (),
) -> "Retriever":
    """Open a store's active bundle, or the folder of one bundle, and verify every file against its manifest.

    Args:
        path: a folder or a URL (s3://, gs://, az://, …). A bundle at a URL is fetched into `cache`; default:
            DIPTYCH_CACHE, or the user's cache folder.
        threads: threads of the encoder; default: one per core.
        search_threads: threads of the indexes; default: as `threads`.
        provider: "cpu" or "cuda".
        trusted: keys of which one must have signed the bundle; without keys, signatures are not checked.
        low_priority: verify and load the files at low priority.
        paused: ids of labels to leave out of answers; default: those in PAUSED.json of the bundle's store.
        deferred: start no threads. Call `Retriever.start` before the first search, after the process was forked.
        index_sockets: descriptors of sockets to a `retrieval.milvus.host` that searches for an index in Milvus;
            default: this process connects to the server itself.

    Raises BundleError, and BadInput for an unavailable provider.
    """
    from retrieval.loading import LoadOptions
    from retrieval.retriever import Retriever  # on first use: a store needs no ONNX Runtime

    location = locate_bundle(path, cache, trusted)
    if paused is None:
        paused = () if location.store is None else read_paused(location.store)
    options = LoadOptions(threads, search_threads, provider, low_priority, deferred, tuple(index_sockets))
    retriever = Retriever.load(location.folder, options, trusted=trusted)
    try:
        if location.active_in is not None:
            location.active_in.record_use(retriever.name, retriever.signature)
        retriever.pause(paused)
    except BaseException:
        retriever.close()
        raise
    return retriever


def open_store(path: Path | str, *, trusted: Sequence[str] = (), identity: str | None = None) -> Store:
    """Open a store in a folder; bundles are verified in a child process before they are published or activated.

    See `Store` for the arguments. Raises BadInput for a URL.
    """
    return Store(path, verify_in_subprocess, trusted=trusted, identity=identity, switch_index=switch_index)


def switch_index(folder: Path, trusted: Sequence[str], verified: bool) -> None:
    """Move the alias in Milvus to a bundle's collection, if its index is there; check counts and golden answers first.

    `verified`: the caller has compared the golden answers. Raises BundleError.
    """
    manifest = read_manifest(folder, trusted)
    if manifest.graph is None or manifest.graph.kind != "milvus":
        return
    from retrieval.milvus.collection import activate_collection, collection_name
    from retrieval.milvus.host import start_host
    from retrieval.milvus.settings import milvus_settings

    if not verified:
        with closing(start_host(collection_name(manifest, milvus_settings().prefix), connections=1)) as host:
            verify_in_subprocess(folder, trusted, index_sockets=host.descriptors)
    activate_collection(manifest, folder.name)


def cache_store(url: str, cache: Path | str | None = None, trusted: Sequence[str] = ()) -> Store:
    """Return the store of a URL in the cache folder: `cache`, DIPTYCH_CACHE, or the user's cache folder.

    Bundles are verified when they are fetched, and again when they are opened. Raises BundleError.
    """
    return open_store(cache_path(url, cache), trusted=trusted, identity=checked_url(url))


def locate_bundle(path: Path | str, cache: Path | str | None = None, trusted: Sequence[str] = ()) -> BundleLocation:
    """Find the folder of the bundle that a path or URL names; fetch it from a URL if needed. Raises BundleError."""
    if (url := as_url(path)) is not None:
        folder = ensure_local(url, cache_store(url, cache, trusted))
        return BundleLocation(folder, folder.parent.parent)
    path = Path(path)
    if not (path / BUNDLES).is_dir():
        if not (path / MANIFEST).exists():
            raise BundleError(f"{path} is neither a store (no folder bundles) nor a bundle (no {MANIFEST}).")
        return _locate_in_store(path)
    store = open_store(path.resolve(), trusted=trusted, identity=os.path.abspath(path))
    name = store.active()
    if name is None:
        names = ", ".join(store.bundles()) or "none yet"
        raise BundleError(f"{path} has no active bundle; it has: {names}. Activate one of them.")
    store.check_serial(name)
    return BundleLocation(store.bundle_path(name), store.path, store)


def _locate_in_store(folder: Path) -> BundleLocation:
    """Find the store that contains a bundle's folder, if any."""
    absolute = Path(os.path.abspath(folder))
    if absolute.parent.name != BUNDLES:
        absolute = absolute.resolve()
    if absolute.parent.name != BUNDLES:
        return BundleLocation(absolute, None)
    store = absolute.parent.parent.resolve()
    return BundleLocation(store / BUNDLES / absolute.name, store)
