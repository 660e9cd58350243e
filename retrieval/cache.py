"""Bundles behind a URL, brought into a local store, where everything else that is done with bundles is done.

The cache has such a store for each URL; its active bundle is the one that was active at the URL when that was last
asked. What is fetched lies aside, without a name, until it is whole and proved.
"""

import fcntl
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from retrieval.errors import BundleError, Unreachable
from retrieval.manifest import MANIFEST, FileEntry, describe_file, read_manifest
from retrieval.remote import Missing, Remote, blaming, checked_url
from retrieval.signatures import SIGNATURE
from retrieval.store import Store

CACHE = "DIPTYCH_CACHE"

Progress = Callable[[int, int], object]  # bytes that are here, bytes in all


@dataclass(frozen=True)
class Source:
    """Where to find a bundle: its name, its folder behind the URL, and the manifest that stands there."""

    remote: Remote
    name: str
    folder: str
    manifest: bytes

    @property
    def place(self) -> str:
        """The URL of the bundle."""
        return self.remote.place(self.folder)


def cache_store(url: str, cache: Path | str | None = None) -> Store:
    """The cache's store for a URL: in `cache`, or the folder that DIPTYCH_CACHE names, or the user's cache folder."""
    url, named = checked_url(url), cache or os.environ.get(CACHE)
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", url)[-48:].strip("-.")
    return Store(folder / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:16]}")


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
        store = cache_store(url, cache)
        known = store.active() if name is None else name
        if known not in store.bundles():
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
    store = cache_store(url, cache)
    found = pull(url, store, name, trusted=trusted, progress=progress)
    if name is None and store.active() != found:
        # It was proved when it came, and whoever opens it compares its files with the manifest again.
        Store(store.path, prove=lambda folder: None).activate(found)
    return store.bundle_path(found)


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
    remote = Remote(url)
    name, folder = remote.find(name)
    source = Source(remote, name, folder, remote.manifest_bytes(folder))
    if not _holds(store, source):
        with _alone(store):
            if not _holds(store, source):
                _download(source, store, trusted, progress or (lambda done, total: None))
    elif trusted:
        _renew_signature(source, store, trusted)
    read_manifest(store.bundle_path(name), trusted)
    return name


def _holds(store: Store, source: Source) -> bool:
    """Whether a store has this very bundle. BundleError where another one has its name: names are for good."""
    folder = store.path / "bundles" / source.name
    if not folder.is_dir():
        return False
    if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() != source.manifest:
        raise BundleError(
            f"{folder} is another bundle than {source.place}. Publish that under a name of its own, or remove {folder}."
        )
    return True


def _download(source: Source, store: Store, trusted: Sequence[str], progress: Progress) -> None:
    """Fetch a bundle into a folder aside and publish it from there, which proves it."""
    with store.incoming() as folder, blaming(source.place, folder), _writing(store):
        (folder / MANIFEST).write_bytes(source.manifest)
        if (signature := source.remote.signature(source.folder)) is not None:
            (folder / SIGNATURE).write_bytes(signature)
        files = read_manifest(folder, trusted).files
        done, total = 0, sum(entry.bytes for entry in files.values())

        def arrived(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        if total > (free := shutil.disk_usage(folder).free):
            raise BundleError(
                f"{source.place} has {total:,} bytes; {store.path} has room for {free:,}. Free some space."
            )
        for file, entry in files.items():
            if (here := _same_file(store, file, entry)) is not None:
                shutil.copyfile(here, folder / file)
                arrived(entry.bytes)
            else:
                _fetch_file(source, folder / file, entry, arrived)
        store.publish(folder, source.name)


def _same_file(store: Store, file: str, entry: FileEntry) -> Path | None:
    """A file that an earlier bundle brought: a tokenizer or an encoder often outlives the labels."""
    for name in store.bundles():
        try:
            path = store.bundle_path(name) / file
            listed = read_manifest(path.parent).files.get(file)
        except BundleError:
            continue  # damaged, or of another release: nothing to gain from it
        if listed == entry and path.is_file() and describe_file(path) == entry:
            return path
    return None


def _fetch_file(source: Source, target: Path, entry: FileEntry, arrived: Callable[[int], object]) -> None:
    """Write one file, counting what arrives. Reading ends one byte behind what is listed, or with what differs."""
    path, digest, count = f"{source.folder}{target.name}", hashlib.sha256(), 0
    try:
        with target.open("wb") as sink:
            for chunk in source.remote.chunks(path, entry.bytes):
                sink.write(chunk)
                digest.update(chunk)
                count += len(chunk)
                arrived(len(chunk))
    except Missing as missing:
        raise BundleError(f"{missing} Yet {MANIFEST} lists it: publish the bundle there again.") from missing
    if (count, digest.hexdigest()) == (entry.bytes, entry.sha256):
        return
    sizes = f"more than {entry.bytes}" if count > entry.bytes else f"{count}"
    wrong = "another SHA-256" if count == entry.bytes else f"{sizes} bytes where {entry.bytes} are listed"
    raise BundleError(
        f"{source.remote.place(path)} is not the file in {MANIFEST}: {wrong}. Publish the bundle there again."
    )


def _renew_signature(source: Source, store: Store, trusted: Sequence[str]) -> None:
    """Take over a signature that was made after the bundle had come here, if it is one to be trusted."""
    kept = store.bundle_path(source.name) / SIGNATURE
    signature = source.remote.signature(source.folder)
    if signature is None or (kept.is_file() and kept.read_bytes() == signature):
        return
    with TemporaryDirectory() as folder, blaming(source.place, folder):
        Path(folder, MANIFEST).write_bytes(source.manifest)
        Path(folder, SIGNATURE).write_bytes(signature)
        read_manifest(Path(folder), trusted)
    store.attach_signature(source.name, signature.decode("ascii"))


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """One download at a time. Not under the store's own lock, which would keep its other commands waiting."""
    with _writing(store):
        store.path.mkdir(parents=True, exist_ok=True)
        with (store.path / ".pulling").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{store.path} cannot be written ({error.strerror or error}). "
            f"Check its rights and free space; the cache's folder can be set with {CACHE}."
        ) from error


def _warn(said: str) -> None:
    warnings.warn(said, RuntimeWarning, stacklevel=5)  # the line that called Retriever.open
