"""The bytes that are used are the bytes that were hashed, even if the files of an open bundle change."""

import gc
import mmap
import os
import shutil
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import open_bundle
from retrieval.bundle.facts import FileEntry
from retrieval.bundle.manifest import (
    GOLDEN,
    INDEX,
    LABEL_ENCODER,
    LABELS,
    MEMORY,
    PROJECTION,
    QUERY_ENCODER,
    REQUIRED,
    TOKENIZER,
    VECTORS,
)
from retrieval.bundle.signatures import new_keys
from retrieval.bundle.vector_file import read_finite
from retrieval.bundle.verified_files import OpenEntry, open_listed_file, read_bundle
from retrieval.errors import BundleError
from retrieval.loading import is_loaded
from retrieval.retriever import Retriever
from retrieval.store.local import Store
from retrieval.system.limits import FreeMemory
from tests.support.bundles import VOTES, make_bundle

QUERIES = ["cheap running shoes", "red winter city", "rain"]
OPENED = (TOKENIZER, QUERY_ENCODER, INDEX, PROJECTION, VECTORS, LABELS, GOLDEN, *MEMORY)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "words", seed=0, prefix="true", memory=VOTES)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Make a bundle whose files have the same sizes and other content."""
    return make_bundle(tmp_path / "other", seed=1, prefix="fals", memory=VOTES)


def by_rename(path: Path, other: Path) -> None:
    """Replace a file by another one."""
    shutil.copyfile(other, path.with_name("swap"))
    os.replace(path.with_name("swap"), path)


def by_link(path: Path, other: Path) -> None:
    """Replace a file by a link to another one."""
    path.unlink()
    path.symlink_to(other)


def in_place(path: Path, other: Path) -> None:
    """Overwrite the content of a file."""
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def cut(path: Path, other: Path) -> None:
    """Truncate a file."""
    os.truncate(path, 0)


CHANGES = (by_rename, by_link, in_place, cut)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", OPENED)
def test_a_file_that_is_changed_after_it_was_hashed_is_not_used(
    bundle: Path, other: Path, name: str, change: Callable[[Path, Path], None]
) -> None:
    """If it fails, an attacker who can write to a store has content served that no trusted key has signed."""
    with open_bundle(bundle) as retriever:
        expected = retriever.search(QUERIES, 5)
    files = read_bundle(bundle, is_loaded)
    change(bundle / name, other / name)
    with Retriever.from_files(bundle, files) as retriever:
        assert retriever.search(QUERIES, 5) == expected
        assert retriever.check_golden().passed


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_are_changed_under_an_open_bundle_change_nothing(
    bundle: Path, other: Path, change: Callable[[Path, Path], None]
) -> None:
    """If it fails, an edit in a store silently changes answers, or a copy over it ends the engine (SIGBUS)."""
    with open_bundle(bundle) as retriever:
        expected, exact = retriever.search(QUERIES, 5), retriever.search(QUERIES, 5, exact=True)
        for name in (*OPENED, LABEL_ENCODER):
            change(bundle / name, other / name)
        assert retriever.search(QUERIES, 5) == expected
        assert retriever.search(QUERIES, 5, exact=True) == exact
        assert retriever.check_golden().passed


def test_a_file_that_is_edited_after_it_was_opened_is_refused(bundle: Path, other: Path) -> None:
    """If it fails, a process that writes quickly enough can change bytes after the check."""

    def open_and_edit(path: Path, folder: int, entry: FileEntry) -> FileIO:
        file = open_listed_file(path, folder, entry)
        if path.name == VECTORS:
            in_place(path, other / VECTORS)
        return file

    with pytest.raises(BundleError, match=r"vectors\.npy is damaged"):
        read_bundle(bundle, is_loaded, open_entry=open_and_edit)


def little_memory() -> FreeMemory:
    return FreeMemory(1000, "the machine has 1 MB")


def test_vectors_are_mapped_if_memory_is_short_and_this_is_logged(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails, a bundle larger than memory cannot be opened, or its weaker guarantee is not logged."""
    files = read_bundle(bundle, is_loaded, memory=little_memory)
    with Retriever.from_files(bundle, files) as retriever:
        base: Any = retriever.vectors_LD
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert isinstance(getattr(base, "obj", base), mmap.mmap)
        assert retriever.check_golden().passed
    assert "vectors.npy is not copied into memory" in caplog.text


def test_with_trusted_keys_vectors_are_never_mapped(bundle: Path, other: Path, tmp_path: Path) -> None:
    """If it fails, the guarantee of signatures does not apply to a bundle larger than memory."""
    keys, store = new_keys(), Store(tmp_path / "store", lambda folder, trusted: None)
    path = store.publish(bundle, "one")
    store.sign("one", keys.signing)
    files = read_bundle(path, is_loaded, [keys.trusted], memory=little_memory)
    with Retriever.from_files(path, files) as retriever:
        expected = retriever.search(QUERIES, 5)
        in_place(path / VECTORS, other / VECTORS)
        assert retriever.search(QUERIES, 5) == expected


def test_the_copy_of_the_index_cannot_be_written(bundle: Path) -> None:
    """If it fails, another process of the same user changes the index between its check and its loading."""
    files = read_bundle(bundle, lambda name: name == INDEX)
    with files.graphs[INDEX] as graph:
        graph.seek(0)
        with pytest.raises(PermissionError):
            graph.write(b"other")


def test_no_descriptor_is_left_open(bundle: Path) -> None:
    """If it fails, every bundle that a service opens or refuses leaks file descriptors."""

    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    open_bundle(bundle).close()  # what libraries open once
    gc.collect()  # else files that earlier tests left to the garbage collector could be closed between the two counts
    before = opened()
    for _ in range(3):
        open_bundle(bundle).close()
    (bundle / VECTORS).write_bytes((bundle / VECTORS).read_bytes()[:-1] + b"?")
    for _ in range(3):
        with pytest.raises(BundleError):
            open_bundle(bundle)
    assert opened() <= before


def test_a_bundle_of_hard_links_opens(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a store made of hard links (by a backup or `cp -al`) is refused, although its bytes are copied."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.iterdir():
        os.link(file, copy / file.name)
    with open_bundle(copy) as retriever:
        assert retriever.check_golden().passed


@pytest.mark.parametrize("name", [*REQUIRED, "manifest.json", "manifest.sig"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "link to nothing"])
def test_only_regular_files_are_opened(bundle: Path, tmp_path: Path, name: str, kind: str) -> None:
    """If it fails, a pipe in place of a file blocks its reader forever, or a link redirects it to another file."""
    path, content = bundle / name, tmp_path / "content"
    if path.exists():
        path.rename(content)
    else:
        content.write_bytes(b"ed25519 a b")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(content if kind == "link" else tmp_path / "absent")
    with pytest.raises(BundleError, match=name) as refused:
        open_bundle(bundle, trusted=["key"] if name == "manifest.sig" else [])
    assert str(refused.value).endswith(".")


def failing_at(name: str, error: Exception) -> OpenEntry:
    """Open files of a bundle; reading the file `name` raises an error."""

    class FailingFile(FileIO):
        def read(self, *_: Any) -> bytes:
            raise error

        def readinto(self, *_: Any) -> int:
            raise error

    def open_entry(path: Path, folder: int, entry: FileEntry) -> FileIO:
        with open_listed_file(path, folder, entry) as file:
            return (FailingFile if path.name == name else FileIO)(os.dup(file.fileno()))

    return open_entry


@pytest.mark.parametrize("name", [LABEL_ENCODER, INDEX, VECTORS, LABELS])
def test_a_read_error_is_one_sentence(bundle: Path, name: str) -> None:
    """If it fails, a failing disk ends a command in a traceback."""
    with pytest.raises(BundleError, match=rf"{name} cannot be read \(Input/output error\)"):
        read_bundle(bundle, is_loaded, open_entry=failing_at(name, OSError(5, os.strerror(5))))


def test_vectors_of_another_length_are_refused(tmp_path: Path) -> None:
    """If it fails, a file that grows while it is read, or a header of gigabytes, ends the reader in a traceback."""
    path = tmp_path / VECTORS
    np.save(path, np.zeros((3, 4), np.float32))
    size = path.stat().st_size
    with FileIO(path) as file, pytest.raises(BundleError, match="changed while it was read"):
        list(read_finite(path, file, 4, 3, np.empty(size - 4, np.uint8)))
    with path.open("ab") as grown:
        grown.truncate(size + (1 << 30))
    with FileIO(path) as file, pytest.raises(BundleError, match="too many for 3 vectors of 4 numbers"):
        list(read_finite(path, file, 4, 3))


@pytest.mark.parametrize("name", [VECTORS, LABELS])
def test_a_file_that_does_not_fit_into_memory_is_one_sentence(bundle: Path, name: str) -> None:
    """If it fails, a bundle that is too large for the machine ends a command in a traceback."""
    with pytest.raises(BundleError, match=r"bytes and does not fit into memory"):
        read_bundle(bundle, is_loaded, open_entry=failing_at(name, MemoryError()))
