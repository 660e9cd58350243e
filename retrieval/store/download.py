"""Download a bundle's files from a URL, with retries. Partial files are resumed, and hashes are checked.

store/.partial/<sha256>   a partial file, named by the hash of the whole file
store/.pulling            a lock file: one process downloads at a time
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from retrieval.bundle.facts import FileEntry
from retrieval.bundle.manifest import MANIFEST, read_manifest
from retrieval.bundle.signatures import SIGNATURE
from retrieval.bundle.verified_files import describe_file
from retrieval.errors import BundleError, Unreachable
from retrieval.store.cache_folder import CACHE
from retrieval.store.folder import subfolder
from retrieval.store.local import Store
from retrieval.store.remote import Missing, NotSeekable, Remote, rewrite_paths
from retrieval.system.file_locks import exclusive_lock
from retrieval.system.progress import Progress
from retrieval.system.safe_open import copy_file, folder_open, open_file, remove

PARTIAL, DOWNLOAD_LOCK = ".partial", ".pulling"
ATTEMPTS = 5  # per file; each resumes the one before
FIRST_WAIT, LONGEST_WAIT = 0.1, 3.0  # seconds between attempts
BLOCK = 1 << 20


@dataclass(frozen=True)
class RemoteBundle:
    """A bundle behind a URL: its name, its folder there, and the bytes of its manifest."""

    remote: Remote
    name: str
    folder: str
    manifest: bytes

    @property
    def url(self) -> str:
        """Return the URL of the bundle."""
        return self.remote.url_of(self.folder)


def download(source: RemoteBundle, store: Store, progress: Progress) -> None:
    """Fetch a bundle into a staging folder and publish it, which verifies it. Raises BundleError."""
    with (
        store.incoming() as folder,
        rewrite_paths(folder, source.url),
        _write_errors(store),
        _partial_folder(store) as partial,
    ):
        (folder / MANIFEST).write_bytes(source.manifest)
        if (signature := source.remote.signature(source.folder)) is not None:
            (folder / SIGNATURE).write_bytes(signature)
        files = read_manifest(folder, store.trusted).files
        _remove_others(partial, {entry.sha256 for entry in files.values()})
        done, total = 0, sum(entry.bytes for entry in files.values())

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        present = sum(os.stat(name, dir_fd=partial).st_size for name in os.listdir(partial))
        if total - present > (free := shutil.disk_usage(folder).free):
            raise BundleError(
                f"{source.url} has {total:,} bytes; {store.path} has {free:,} bytes free. Free some space."
            )
        for file, entry in files.items():
            if (local := _same_file(store, file, entry)) is not None:
                copy_file(local, folder / file)
                on_bytes(entry.bytes)
            else:
                _fetch(source, store.path / PARTIAL / entry.sha256, partial, folder / file, entry, on_bytes)
        store.publish(folder, source.name)


@contextmanager
def download_lock(store: Store) -> Iterator[None]:
    """Hold the download lock. The store's own lock stays free for other commands."""
    with _write_errors(store):
        store.path.mkdir(parents=True, exist_ok=True)
        with folder_open(store.path, follow=True) as root, exclusive_lock(store.path / DOWNLOAD_LOCK, root):
            yield


@contextmanager
def _partial_folder(store: Store) -> Iterator[int]:
    """Open the folder of partial files; remove it at the end if it is empty."""
    with folder_open(store.path, follow=True) as root, subfolder(store.path / PARTIAL, root) as partial:
        try:
            yield partial
        finally:
            if not os.listdir(partial):
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
            if read_manifest(path.parent).files.get(file) == entry and describe_file(path) == entry:
                return path
        except (BundleError, OSError):
            continue  # damaged, or of another release
    return None


def _fetch(
    source: RemoteBundle, path: Path, partial: int, target: Path, entry: FileEntry, on_bytes: Callable[[int], object]
) -> None:
    """Fetch a file to `path`, resuming an earlier download, and move it to `target` if its hash is right."""
    descriptor = open_file(path, partial, os.O_RDWR | os.O_CREAT)
    with FileIO(descriptor, "r+") as file:
        resumed = os.fstat(descriptor).st_size > 0
        fetched = _fetch_open(source, file, target.name, entry, on_bytes)
        if fetched != entry and resumed and fetched.bytes == entry.bytes:  # the resumed part may have been wrong
            file.truncate(0)
            fetched = _fetch_open(source, file, target.name, entry, lambda count: None)
    if fetched == entry:
        with folder_open(target.parent) as folder:
            os.rename(path.name, target.name, src_dir_fd=partial, dst_dir_fd=folder)  # `Store.publish` flushes it
        return
    os.unlink(path.name, dir_fd=partial)
    size = f"more than {entry.bytes}" if fetched.bytes > entry.bytes else f"{fetched.bytes}"
    reason = "its SHA-256 differs" if fetched.bytes == entry.bytes else f"it has {size} bytes, not {entry.bytes}"
    url = source.remote.url_of(f"{source.folder}{target.name}")
    raise BundleError(f"{url} is not the file that {MANIFEST} lists: {reason}. Publish the bundle there again.")


def _fetch_open(
    source: RemoteBundle, file: FileIO, name: str, entry: FileEntry, on_bytes: Callable[[int], object]
) -> FileEntry:
    """Fetch a file in several attempts; return its size and hash. Reads at most one byte more than listed."""
    import stamina

    file_download = _FileDownload(source, file, name, entry, on_bytes)
    for attempt in stamina.retry_context(
        on=Unreachable, attempts=ATTEMPTS, timeout=None, wait_initial=FIRST_WAIT, wait_max=LONGEST_WAIT
    ):
        with attempt:
            file_download.resume()
    return file_download.describe()


class _FileDownload:
    """The download of one file: the bytes present, and their hash."""

    def __init__(
        self, source: RemoteBundle, file: FileIO, name: str, entry: FileEntry, on_bytes: Callable[[int], object]
    ) -> None:
        self._source, self._file, self._entry, self._on_bytes = source, file, entry, on_bytes
        self._path = f"{source.folder}{name}"
        self._digest, self._count, self._reported = hashlib.sha256(), 0, 0
        file.seek(0)
        if os.fstat(file.fileno()).st_size > entry.bytes:
            file.truncate(0)
        while block := file.read(BLOCK):
            self._add(block)

    def resume(self) -> None:
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
                self._add(chunk)
        except Missing as missing:
            raise BundleError(f"{missing} But {MANIFEST} lists it. Publish the bundle there again.") from missing

    def _add(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._count += len(chunk)
        if self._count > self._reported:  # bytes that are fetched again are not counted again
            self._on_bytes(self._count - self._reported)
            self._reported = self._count

    def describe(self) -> FileEntry:
        """Return size and hash of the bytes present."""
        return FileEntry(bytes=self._count, sha256=self._digest.hexdigest())


@contextmanager
def _write_errors(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{store.path} cannot be written ({error.strerror or error}). "
            f"Check its permissions and free space; the cache's folder can be set with {CACHE}."
        ) from error
