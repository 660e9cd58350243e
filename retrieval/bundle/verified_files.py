"""Read the files of a bundle and compare them with its manifest. Readers get the same bytes that were compared.

Each file is opened once. The files to load are copied into memory that no other process can change. One exception:
`vectors.npy` and `memory_vectors.npy` stay memory-mapped files if memory is short and no keys are trusted, see
docs/decisions/0032.
"""

import fcntl
import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retrieval.bundle.facts import FileEntry
from retrieval.bundle.index_file import Buffer, read_checked
from retrieval.bundle.manifest import (
    MANIFEST,
    MEMORY_VECTORS,
    TOKENIZER,
    UNLISTED,
    VECTORS,
    Manifest,
    SignedManifest,
    format_version,
    read_signed_manifest,
)
from retrieval.bundle.vector_file import read_finite
from retrieval.errors import BundleError
from retrieval.system.limits import FreeMemory, available_cores, free_memory
from retrieval.system.safe_open import open_bundle_folder, open_file

LOG = logging.getLogger("diptych")
BLOCK = 1 << 18  # bytes per hashed block; fits into a core's cache
TOKENIZER_LIMIT = 256 << 20  # bytes; a tokenizer for a hundred languages has 17 MB
OpenEntry = Callable[[Path, int, FileEntry], FileIO]  # called with the path, the open folder and the manifest's entry
MAPPABLE = (VECTORS, MEMORY_VECTORS)
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class BundleFiles(NamedTuple):
    """A verified bundle: its manifest, its signature, and the contents of the files to load.

    `graphs` are the loaded indexes as sealed files in memory, since hnswlib reads from a path.
    """

    signed: SignedManifest
    contents: dict[str, Buffer]
    graphs: dict[str, FileIO]

    @property
    def manifest(self) -> Manifest:
        """Return the bundle's manifest."""
        return self.signed.manifest

    def close(self) -> None:
        """Free the in-memory files of the indexes."""
        for graph in self.graphs.values():
            graph.close()


class _ReadFile(NamedTuple):
    """Size and hash of a file that was read, and its content if it is to be loaded."""

    entry: FileEntry
    content: Buffer | None = None
    graph: FileIO | None = None


def verify_bundle(folder: Path, trusted: Sequence[str] = (), threads: int | None = None) -> Manifest:
    """Compare every file of a bundle with its manifest. Raises BundleError at the first difference.

    Also checks that the index is safe to load and that all vectors are finite. With `trusted` keys, one of them must
    have signed the manifest. `threads` read the files; default: one per core.
    """
    return read_bundle(folder, lambda name: False, trusted, threads).manifest


def verify_signed(folder: Path, trusted: Sequence[str] = ()) -> SignedManifest:
    """Verify as `verify_bundle` does; return the manifest with its bytes and its signature."""
    return read_bundle(folder, lambda name: False, trusted).signed


def read_bundle(
    folder: Path,
    is_loaded: Callable[[str], bool],
    trusted: Sequence[str] = (),
    threads: int | None = None,
    *,
    open_entry: OpenEntry | None = None,
    memory: Callable[[], FreeMemory] = free_memory,
) -> BundleFiles:
    """Verify a bundle as `verify_bundle` does; return the contents of the files to load. Raises BundleError.

    is_loaded: whether to load the file of a name. open_entry: opens a listed file; default: `open_listed_file`.
    memory: returns the free memory.
    """
    with ExitStack() as stack:
        descriptor = _open_folder(folder)
        stack.callback(os.close, descriptor)
        signed = read_signed_manifest(folder, trusted, descriptor)
        manifest = signed.manifest
        _check_names(folder, os.listdir(descriptor), manifest)
        open_entry = open_entry or open_listed_file
        files = {
            name: stack.enter_context(open_entry(folder / name, descriptor, entry))
            for name, entry in manifest.files.items()
        }
        mapped = _must_map(folder, manifest, is_loaded, trusted, memory)
        with ThreadPoolExecutor(threads or available_cores()) as pool:
            read = list(
                pool.map(lambda name: _read_file(folder / name, files[name], manifest, is_loaded(name), mapped), files)
            )
    return _compare(folder, signed, dict(zip(files, read, strict=True)))


def describe_file(path: Path) -> FileEntry:
    """Return size and SHA-256 of a regular file. Raises BundleError if it is not regular, and OSError."""
    with FileIO(open_file(path)) as file:
        return _describe_open(file)


def seal(folder: Path, **facts: Any) -> Manifest:
    """Write the manifest of a finished folder. `facts` are all fields except the version and the files."""
    files = {item.name: describe_file(item) for item in sorted(folder.iterdir()) if item.name not in UNLISTED}
    version = format_version(facts.get("cascade"), facts.get("index"), facts.get("vectors", "float32"))
    manifest = Manifest(format_version=version, files=files, **facts)  # type: ignore[arg-type]  # validated by pydantic
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def seal_again(folder: Path, **changes: Any) -> Manifest:
    """Write the manifest of a sealed folder whose files have changed; `changes` replace fields."""
    old = read_signed_manifest(folder).manifest
    facts = {name: getattr(old, name) for name in Manifest.model_fields if name not in ("format_version", "files")}
    facts["index"] = facts.pop("graph")
    return seal(folder, **facts | changes)


def _open_folder(folder: Path) -> int:
    try:
        return open_bundle_folder(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{folder} cannot be opened ({error.strerror}). Check its permissions.") from error


def _check_names(folder: Path, names: Collection[str], manifest: Manifest) -> None:
    if extra := sorted(set(names) - manifest.files.keys() - UNLISTED):
        raise BundleError(f"{folder / extra[0]} is not listed in {MANIFEST}. Remove it, or export the bundle again.")
    if (size := manifest.files[TOKENIZER].bytes) > TOKENIZER_LIMIT:
        raise BundleError(f"{folder / TOKENIZER} has {size:,} bytes; a tokenizer has at most {TOKENIZER_LIMIT:,}.")


def open_listed_file(path: Path, folder: int, entry: FileEntry) -> FileIO:
    """Open a file of an open bundle folder, and check its size. Raises BundleError."""
    try:
        file = FileIO(open_file(path, folder))
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing, but {MANIFEST} lists it. Copy the bundle again.") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be opened ({error.strerror}). Check its permissions.") from error
    size = os.fstat(file.fileno()).st_size
    if size != entry.bytes:
        file.close()
        raise BundleError(f"{path} has {size} bytes, but {MANIFEST} lists {entry.bytes}. Copy it again.")
    return file


def _must_map(
    folder: Path,
    manifest: Manifest,
    is_loaded: Callable[[str], bool],
    trusted: Sequence[str],
    memory: Callable[[], FreeMemory],
) -> bool:
    """Return whether the vectors must stay a mapped file because memory is short; never with trusted keys."""
    if trusted or not is_loaded(VECTORS):
        return False
    needed = sum(entry.bytes for name, entry in manifest.files.items() if is_loaded(name))
    available = memory()
    if needed < available.free:
        return False
    LOG.warning(
        "%s is not copied into memory: %d MB are needed, %d MB are free (%s). A change of the file changes answers.",
        folder / VECTORS, needed >> 20, available.free >> 20, available.limit,
    )  # fmt: skip
    return True


def _compare(folder: Path, signed: SignedManifest, read: dict[str, _ReadFile]) -> BundleFiles:
    """Return a bundle whose files have the sizes and hashes of its manifest. Raises BundleError."""
    graphs = {name: file.graph for name, file in read.items() if file.graph is not None}
    contents = {name: file.content for name, file in read.items() if file.content is not None}
    bundle = BundleFiles(signed, contents, graphs)
    for name, entry in signed.manifest.files.items():
        if read[name].entry != entry:
            bundle.close()
            raise BundleError(f"{folder / name} is damaged: its SHA-256 is not the one in {MANIFEST}. Copy it again.")
    return bundle


def _read_file(path: Path, file: FileIO, manifest: Manifest, loaded: bool, mapped: bool) -> _ReadFile:
    """Read and hash a file. Links of the index and values of vectors are checked while they are read."""
    entry = manifest.files[path.name]
    try:
        if path.name in manifest.graphs:
            return _read_index(read_checked(path, file, *manifest.graphs[path.name]), loaded)
        if path.name in manifest.arrays:
            rows, columns = manifest.arrays[path.name]
            copied = loaded and not (mapped and path.name in MAPPABLE)
            content = np.empty(entry.bytes, np.uint8) if copied else None
            number = np.int8 if path.name == VECTORS and manifest.vectors == "int8" else np.float32
            actual = _describe(read_finite(path, file, columns, rows, content, number))
            if loaded and not copied:
                return _ReadFile(actual, memoryview(mmap.mmap(file.fileno(), entry.bytes, access=mmap.ACCESS_READ)))
            return _ReadFile(actual, None if content is None else content.data)
        if loaded:
            written = _read_at_most(file, entry.bytes + 1)
            return _ReadFile(_describe([written]), written)
        return _ReadFile(_describe_open(file))
    except BundleError:
        actual = _describe_again(path, file)
        if actual == entry:
            raise  # the file is as published, and invalid; otherwise it is damaged
        return _ReadFile(actual)
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise BundleError(
            f"{path} has {entry.bytes:,} bytes and does not fit into memory. Free memory, or raise the limit."
        ) from error


def _describe_again(path: Path, file: FileIO) -> FileEntry:
    """Describe an open file from its beginning. Raises BundleError."""
    try:
        file.seek(0)
        return _describe_open(file)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read ({error.strerror}). Check the disk, or copy it again.")


def _read_index(blocks: Iterable[Buffer], loaded: bool) -> _ReadFile:
    """Hash an index. If it is loaded, copy it to a file in memory, which is then sealed."""
    if not loaded:
        return _ReadFile(_describe(blocks))
    copy = FileIO(os.memfd_create("index", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")
    try:
        digest, size = hashlib.sha256(), 0
        for block in blocks:
            digest.update(block)
            view = memoryview(block).cast("B")
            size += len(view)
            while view:
                view = view[copy.write(view) :]
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        copy.close()
        raise
    return _ReadFile(FileEntry(bytes=size, sha256=digest.hexdigest()), None, copy)


def _read_at_most(file: FileIO, limit: int) -> bytes:
    """Read the rest of a file, at most `limit` bytes. A single read call returns at most 2 GB."""
    parts = []
    while limit and (part := file.read(limit)):
        parts.append(part)
        limit -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _describe(blocks: Iterable[Buffer]) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size += memoryview(block).nbytes
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def _describe_open(file: FileIO) -> FileEntry:
    digest, size, buffer = hashlib.sha256(), 0, bytearray(BLOCK)
    while count := file.readinto(buffer):
        digest.update(memoryview(buffer)[:count])
        size += count
    return FileEntry(bytes=size, sha256=digest.hexdigest())
