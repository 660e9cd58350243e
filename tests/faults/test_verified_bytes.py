"""The bytes that are opened are those that were hashed, whatever happens to the files of an open bundle."""

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

import retrieval.bundle.verified_files
from retrieval.bundle.manifest import (
    DIRECTIONS,
    GOLDEN,
    INDEX,
    LABEL_ENCODER,
    LABELS,
    QUERY_ENCODER,
    REQUIRED,
    TOKENIZER,
    VECTORS,
)
from retrieval.bundle.vector_file import read_finite
from retrieval.errors import BundleError
from retrieval.retriever import Retriever
from retrieval.store.local import Store
from retrieval.system.limits import FreeMemory
from tests.support.bundles import make_bundle

QUERIES = ["cheap running shoes", "red winter city", "rain"]
OPENED = (TOKENIZER, QUERY_ENCODER, INDEX, DIRECTIONS, VECTORS, LABELS, GOLDEN)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "words", seed=0, prefix="true")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A bundle whose files have the same sizes and another content."""
    return make_bundle(tmp_path / "other", seed=1, prefix="fals")


def by_rename(path: Path, other: Path) -> None:
    """Put another file in its place."""
    shutil.copyfile(other, path.with_name("swap"))
    os.replace(path.with_name("swap"), path)


def by_link(path: Path, other: Path) -> None:
    """Put a link to another file in its place."""
    path.unlink()
    path.symlink_to(other)


def in_place(path: Path, other: Path) -> None:
    """Write over its bytes."""
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def cut(path: Path, other: Path) -> None:
    """Take its bytes away."""
    os.truncate(path, 0)


CHANGES = (by_rename, by_link, in_place, cut)


def after_hashing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Let something happen between the moment a bundle's files were hashed and the moment they are used."""
    read = retrieval.bundle.verified_files.read_bundle

    def then_change(*arguments: Any, **named: Any) -> Any:
        files = read(*arguments, **named)
        change()
        return files

    monkeypatch.setattr("retrieval.retriever.read_bundle", then_change)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", OPENED)
def test_a_file_that_is_changed_after_it_was_hashed_is_not_used(
    bundle: Path, other: Path, name: str, change: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, an attacker who can write to a store has content served that no trusted key has signed."""
    with Retriever.open(bundle) as retriever:
        expected = retriever.search(QUERIES, 5)
    after_hashing(monkeypatch, lambda: change(bundle / name, other / name))
    with Retriever.open(bundle) as retriever:
        assert retriever.search(QUERIES, 5) == expected
        assert retriever.check_golden().passed


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_are_changed_under_an_open_bundle_change_nothing(
    bundle: Path, other: Path, change: Callable[[Path, Path], None]
) -> None:
    """If it fails, an edit in a store silently changes answers, or a copy over it ends the engine (SIGBUS)."""
    with Retriever.open(bundle) as retriever:
        expected, exact = retriever.search(QUERIES, 5), retriever.search(QUERIES, 5, exact=True)
        for name in (*OPENED, LABEL_ENCODER):
            change(bundle / name, other / name)
        assert retriever.search(QUERIES, 5) == expected
        assert retriever.search(QUERIES, 5, exact=True) == exact
        assert retriever.check_golden().passed


def test_a_file_that_is_edited_while_it_is_hashed_is_refused_or_whole(
    bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a writer that is quick enough gets some of its bytes past the check."""
    see = retrieval.bundle.verified_files._see

    def edited(path: Path, *arguments: Any) -> Any:
        if path.name == VECTORS:
            in_place(path, other / VECTORS)
        return see(path, *arguments)

    monkeypatch.setattr(retrieval.bundle.verified_files, "_see", edited)
    with pytest.raises(BundleError, match=r"vectors\.npy is damaged"):
        Retriever.open(bundle)


def test_where_memory_is_short_vectors_are_mapped_and_that_is_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails, a bundle larger than memory cannot be opened, or its weaker guarantee is not logged."""
    little = FreeMemory(1000, "the machine has 1 MB")
    monkeypatch.setattr(retrieval.bundle.verified_files, "free_memory", lambda: little)
    with Retriever.open(bundle) as retriever:
        base: Any = retriever.vectors_LD
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert isinstance(getattr(base, "obj", base), mmap.mmap)
        assert retriever.check_golden().passed
    assert "vectors.npy is not copied into memory" in caplog.text


def test_with_trusted_keys_vectors_are_never_mapped(
    bundle: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, the guarantee of signatures ends where memory does."""
    from retrieval.bundle.signatures import new_keys

    keys, store = new_keys(), Store(tmp_path / "store", lambda folder: None)
    path = store.publish(bundle, "one")
    store.sign("one", keys.signing)
    little = FreeMemory(1000, "the machine has 1 MB")
    monkeypatch.setattr(retrieval.bundle.verified_files, "free_memory", lambda: little)
    with Retriever.open(path, trusted=[keys.trusted]) as retriever:
        expected = retriever.search(QUERIES, 5)
        in_place(path / VECTORS, other / VECTORS)
        assert retriever.search(QUERIES, 5) == expected


def test_the_copy_of_the_index_cannot_be_written(bundle: Path) -> None:
    """If it fails, another process of the same user changes the index between its check and its loading."""
    files = retrieval.bundle.verified_files.read_bundle(bundle, lambda name: name == INDEX)
    assert files.graph is not None
    with files.graph as graph:
        graph.seek(0)
        with pytest.raises(PermissionError):
            graph.write(b"other")


def test_no_descriptor_is_left_open(bundle: Path) -> None:
    """If it fails, every bundle that a service opens, or refuses, takes files away from its limit."""

    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    Retriever.open(bundle).close()  # what libraries open once
    gc.collect()  # else files that earlier tests left to the garbage collector could be closed between the two counts
    before = opened()
    for _ in range(3):
        Retriever.open(bundle).close()
    (bundle / VECTORS).write_bytes((bundle / VECTORS).read_bytes()[:-1] + b"?")
    for _ in range(3):
        with pytest.raises(BundleError):
            Retriever.open(bundle)
    assert opened() <= before


def test_a_bundle_of_hard_links_opens(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a store that a backup or `cp -al` has made of hard links is refused, though its bytes are copied."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.iterdir():
        os.link(file, copy / file.name)
    with Retriever.open(copy) as retriever:
        assert retriever.check_golden().passed


@pytest.mark.parametrize("name", [*REQUIRED, "manifest.json", "manifest.sig"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "link to nothing"])
def test_what_is_no_plain_file_is_refused_at_once(bundle: Path, tmp_path: Path, name: str, kind: str) -> None:
    """If it fails, a pipe in place of a file holds its reader for ever, or a link shows it another file."""
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
        Retriever.open(bundle, trusted=["key"] if name == "manifest.sig" else [])
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("name", [LABEL_ENCODER, INDEX, VECTORS, LABELS])
def test_a_file_that_the_disk_does_not_give_is_one_sentence(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a failing disk ends a command in a traceback."""

    class Failing(FileIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, os.strerror(5))

        def readinto(self, *_: Any) -> int:
            raise OSError(5, os.strerror(5))

    opened = retrieval.bundle.verified_files._open

    def failing(path: Path, folder: int, entry: Any) -> FileIO:
        with opened(path, folder, entry) as file:
            return Failing(os.dup(file.fileno())) if path.name == name else FileIO(os.dup(file.fileno()))

    monkeypatch.setattr(retrieval.bundle.verified_files, "_open", failing)
    with pytest.raises(BundleError, match=rf"{name} cannot be read \(Input/output error\)"):
        Retriever.open(bundle)


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
def test_a_file_that_does_not_fit_into_memory_is_one_sentence(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a bundle that is too large for the machine ends a command in a traceback."""

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(
        "retrieval.bundle.verified_files.read_finite"
        if name == VECTORS
        else "retrieval.bundle.verified_files._read_at_most",
        full,
    )
    with pytest.raises(BundleError, match=r"bytes and does not fit into memory"):
        Retriever.open(bundle)
