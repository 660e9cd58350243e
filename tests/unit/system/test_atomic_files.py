"""Atomic replacement of files and folders."""

import errno
import os
import stat
from pathlib import Path

import pytest

from retrieval.system.atomic_files import atomic_file, replace_folder, write_text


def test_a_file_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    """If it fails, writing a file loses its content or leaves temporary files."""
    write_text(tmp_path / "a.json", "old")
    write_text(tmp_path / "a.json", "Grüße")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "Grüße"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_previous_file_and_frees_the_space(tmp_path: Path) -> None:
    """If it fails, an error in the middle of a write destroys the previous file or fills the disk."""
    write_text(tmp_path / "a.json", "old")

    def write_half() -> None:
        with atomic_file(tmp_path / "a.json") as temporary:
            temporary.write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_umask_decides_the_permissions(tmp_path: Path) -> None:
    """If it fails, other users cannot read a file whose writer created it with mode 0600."""
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "weights") as temporary:
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == 0o640


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record each flush to disk: whether it is of a folder."""
    kinds: list[bool] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        kinds.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return kinds


def test_file_and_folder_are_flushed_to_disk(tmp_path: Path, flushed: list[bool]) -> None:
    """If it fails, a power failure can lose a file that was reported as saved."""
    write_text(tmp_path / "a.json", "new")
    assert flushed == [False, True], "first the file, then its folder"


def staged_folder(parent: Path, content: str) -> Path:
    folder = parent / "staged"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("replaces", [False, True])
def test_a_replaced_folder_is_flushed_to_disk(tmp_path: Path, flushed: list[bool], replaces: bool) -> None:
    """If it fails, a power failure can lose a dataset that was reported as written."""
    target = tmp_path / "dataset"
    if replaces:
        target.mkdir()
        (target / "old").touch()
    replace_folder(staged_folder(tmp_path, "new"), target)
    assert flushed == [False, False, True, True], "the files, their folder, and its parent folder"
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_folder_that_cannot_be_replaced_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, an error at the last moment loses the previous dataset."""
    target, staged = tmp_path / "dataset", staged_folder(tmp_path, "new")
    target.mkdir()
    (target / "old").touch()
    rename = os.rename

    def fail_for_staged(source: Path, destination: Path) -> None:
        if source == staged:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_for_staged)
    with pytest.raises(OSError, match="Input/output error"):
        replace_folder(staged, target)
    assert [path.name for path in target.iterdir()] == ["old"]
