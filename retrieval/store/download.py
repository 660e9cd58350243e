"""Download a bundle's files from a URL, with retries. Partial files are resumed, and hashes are checked.

store/.partial/<sha256>   a partial file, named by the hash of the whole file
store/.pulling            a lock: one process downloads at a time
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from retrieval.bundle.manifest import MANIFEST, FileEntry, read_manifest
from retrieval.bundle.signatures import SIGNATURE
from retrieval.bundle.verified_files import describe_file
from retrieval.errors import BundleError, Unreachable
from retrieval.store.cache_folder import CACHE
from retrieval.store.folder import file_locked, made_folder
from retrieval.store.local import Store
from retrieval.store.remote import Missing, NotSeekable, Remote, blaming
from retrieval.system.safe_open import copy_file, folder_open, open_file, remove

PARTIAL, PULLING = ".partial", ".pulling"
ATTEMPTS = 5  # per file; each resumes the one before
FIRST_WAIT, LONGEST_WAIT = 0.1, 3.0  # seconds between attempts
BLOCK = 1 << 20

Progress = Callable[[int, int], object]  # called with (bytes present, bytes in all)


@dataclass(frozen=True)
class RemoteBundle:
    """A bundle behind a URL: its name, its folder there, and the bytes of its manifest."""

    remote: Remote
    name: str
    folder: str
    manifest: bytes

    @property
    def place(self) -> str:
        """Return the URL of the bundle."""
        return self.remote.place(self.folder)


def download(source: RemoteBundle, store: Store, trusted: Sequence[str], progress: Progress) -> None:
    """Fetch a bundle into a staging folder and publish it, which verifies it. Raises BundleError."""
    with store.incoming() as folder, blaming(source.place, folder), _writing(store), _partial(store) as partial:
        (folder / MANIFEST).write_bytes(source.manifest)
        if (signature := source.remote.signature(source.folder)) is not None:
            (folder / SIGNATURE).write_bytes(signature)
        files = read_manifest(folder, trusted).files
        _remove_others(partial, {entry.sha256 for entry in files.values()})
        done, total = 0, sum(entry.bytes for entry in files.values())

        def arrived(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        here = sum(os.stat(name, dir_fd=partial).st_size for name in os.listdir(partial))
        if total - here > (free := shutil.disk_usage(folder).free):
            raise BundleError(
                f"{source.place} has {total:,} bytes; {store.path} has room for {free:,}. Free some space."
            )
        for file, entry in files.items():
            if (known := _same_file(store, file, entry)) is not None:
                copy_file(known, folder / file)
                arrived(entry.bytes)
            else:
                _fetch(source, store.path / PARTIAL / entry.sha256, partial, folder / file, entry, arrived)
        store.publish(folder, source.name)


@contextmanager
def downloading(store: Store) -> Iterator[None]:
    """Hold the download lock. The store's own lock stays free for other commands."""
    with _writing(store):
        store.path.mkdir(parents=True, exist_ok=True)
        with folder_open(store.path, follow=True) as root, file_locked(store.path / PULLING, root):
            yield


@contextmanager
def _partial(store: Store) -> Iterator[int]:
    """Open the folder of partial files; remove it at the end if it is empty."""
    with folder_open(store.path, follow=True) as root, made_folder(store.path / PARTIAL, root) as opened:
        try:
            yield opened
        finally:
            if not os.listdir(opened):
                os.rmdir(PARTIAL, dir_fd=root)


def _remove_others(partial: int, hashes: set[str]) -> None:
    """Remove partial files of other bundles: only one download can be resumed."""
    for name in os.listdir(partial):
        if name not in hashes:
            remove(name, partial)


def _same_file(store: Store, file: str, entry: FileEntry) -> Path | None:
    """Return the same file in another bundle of the store; tokenizers and encoders often stay the same."""
    for name in store.bundles():
        try:
            path = store.bundle_path(name) / file
            listed = read_manifest(path.parent).files.get(file)
            if listed == entry and describe_file(path) == entry:
                return path
        except (BundleError, OSError):
            continue  # damaged, or of another release
    return None


def _fetch(
    source: RemoteBundle, path: Path, partial: int, target: Path, entry: FileEntry, arrived: Callable[[int], object]
) -> None:
    """Fetch a file to `path`, resuming what is there, and move it to `target` if its hash is right."""
    handle = open_file(path, partial, os.O_RDWR | os.O_CREAT)
    with FileIO(handle, "r+") as file:
        begun = os.fstat(handle).st_size
        seen = _fetch_open(source, file, target.name, entry, arrived)
        if seen != entry and begun and seen.bytes == entry.bytes:  # the resumed part may have been wrong
            file.truncate(0)
            seen = _fetch_open(source, file, target.name, entry, lambda count: None)
    if seen == entry:
        with folder_open(target.parent) as folder:
            os.rename(path.name, target.name, src_dir_fd=partial, dst_dir_fd=folder)
        return
    os.unlink(path.name, dir_fd=partial)
    sizes = f"more than {entry.bytes}" if seen.bytes > entry.bytes else f"{seen.bytes}"
    wrong = "another SHA-256" if seen.bytes == entry.bytes else f"{sizes} bytes where {entry.bytes} are listed"
    place = source.remote.place(f"{source.folder}{target.name}")
    raise BundleError(f"{place} is not the file in {MANIFEST}: {wrong}. Publish the bundle there again.")


def _fetch_open(
    source: RemoteBundle, file: FileIO, name: str, entry: FileEntry, arrived: Callable[[int], object]
) -> FileEntry:
    """Fetch a file in several attempts; return its size and hash. Reads at most one byte more than listed."""
    import stamina

    download = _Download(source, file, name, entry, arrived)
    for attempt in stamina.retry_context(
        on=Unreachable, attempts=ATTEMPTS, timeout=None, wait_initial=FIRST_WAIT, wait_max=LONGEST_WAIT
    ):
        with attempt:
            download.go_on()
    return download.seen()


class _Download:
    """The download of one file: the bytes present, and their hash."""

    def __init__(
        self, source: RemoteBundle, file: FileIO, name: str, entry: FileEntry, arrived: Callable[[int], object]
    ) -> None:
        self._source, self._file, self._entry, self._arrived = source, file, entry, arrived
        self._path = f"{source.folder}{name}"
        self._digest, self._count, self._told = hashlib.sha256(), 0, 0
        file.seek(0)
        if os.fstat(file.fileno()).st_size > entry.bytes:
            file.truncate(0)
        while block := file.read(BLOCK):
            self._take(block)

    def go_on(self) -> None:
        """Fetch the rest. Raises Unreachable if the connection fails, and BundleError if the file does not exist."""
        try:
            self._read(self._count)
        except NotSeekable:
            self._file.seek(0)
            self._file.truncate(0)
            self._digest, self._count = hashlib.sha256(), 0
            self._read(0)

    def _read(self, start: int) -> None:
        try:
            for chunk in self._source.remote.chunks(self._path, self._entry.bytes, start):
                view = memoryview(chunk)
                while view:
                    view = view[self._file.write(view) :]
                self._take(chunk)
        except Missing as missing:
            raise BundleError(f"{missing} Yet {MANIFEST} lists it: publish the bundle there again.") from missing

    def _take(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._count += len(chunk)
        if self._count > self._told:  # bytes that are fetched again are not counted again
            self._arrived(self._count - self._told)
            self._told = self._count

    def seen(self) -> FileEntry:
        """Return size and hash of the bytes present."""
        return FileEntry(bytes=self._count, sha256=self._digest.hexdigest())


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{store.path} cannot be written ({error.strerror or error}). "
            f"Check its permissions and free space; the cache's folder can be set with {CACHE}."
        ) from error
