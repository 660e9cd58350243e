"""A store on a full or read-only disk, on another file system, or of another user: one message, and no loss."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from retrieval import open_bundle
from retrieval.bundle.verified_files import verify_bundle
from retrieval.open import open_store
from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from tests.support.bundles import make_bundle
from tests.support.processes import running

ROOT = Path(__file__).parents[3]
OTHER_UID = 65_534
COMMANDS = (["publish", "{folder}", "three"], ["activate", "two"], ["rollback"], ["prune"])


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder that other users may enter, unlike pytest's folders."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def store(folder: Path) -> Store:
    """Make a store with the bundles none, one and two; none was activated first, then one."""
    made = Store(folder / "store", verify_in_process)
    for seed, name in enumerate(("none", "one", "two")):
        with made.incoming() as incoming:
            made.publish(make_bundle(incoming, seed=seed, prefix=name), name)
    made.activate("none")
    made.activate("one")
    make_bundle(folder / "whole", seed=3, prefix="three")
    return made


def said(*arguments: object, **options: object) -> str:
    """Run a command and return its output, one line."""
    command = [
        *options.pop("before", []),
        sys.executable,
        "-m",
        "tests.support.programs.store_program",
        *map(str, arguments),
    ]  # type: ignore[misc]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    return str(line)


def nothing_lost(store: Store) -> None:
    assert (store.active(), store.previous()) == ("one", "none")
    assert sorted(store.bundles()) == ["none", "one", "two"]
    for name in store.bundles():
        store.verify(name)
    verify_bundle(store.path.parent / "whole")
    assert store.prune(3) == []
    assert {item.name for item in store.path.iterdir()} == {"CURRENT", "HISTORY", ".lock", "bundles", ".incoming"}
    assert list((store.path / ".incoming").iterdir()) == []


def sentence(line: str, *parts: str) -> None:
    assert line.endswith("."), line
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_store_of_another_user_is_one_sentence(store: Store, command: list[str]) -> None:
    """If it fails, a missing permission ends in a traceback, or a command stops in the middle."""
    name, *arguments = (word.format(folder=store.path.parent / "whole") for word in command)
    others = {"UID_FOR_TEST": str(OTHER_UID)} if os.getuid() == 0 else {}
    modes = {
        path: path.stat().st_mode for path in (store.path, *store.path.iterdir(), *(store.path / "bundles").iterdir())
    }
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    sentence(
        said(name, store.path, *arguments, env=os.environ | others),
        str(store.path),
        "(Permission denied)",
        "permissions",
    )
    for path, mode in modes.items():
        path.chmod(mode)
    nothing_lost(store)


def in_a_mount(size: str, then: str) -> list[str]:
    """Return a command prefix: a namespace where folder/mount is a small disk with a copy of the store."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system does not allow mounts, not even in a new namespace")
    script = f'cd "$0" && mkdir mount && mount -t tmpfs -o size={size} none mount && cp -a store mount/ && {then}'
    return ["unshare", "-rm", "sh", "-c", f'{script} && cd "$1" && shift 1 && "$@"; cp -a "$0"/mount/store "$0"/after']


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_read_only_store_is_a_sentence(store: Store, command: list[str]) -> None:
    """If it fails, a store on a read-only medium ends in a traceback."""
    folder = store.path.parent
    name, *arguments = (word.format(folder=folder / "whole") for word in command)
    before = [*in_a_mount("10m", "mount -o remount,ro mount"), folder, ROOT]
    sentence(
        said(name, folder / "mount" / "store", *arguments, before=before), "(Read-only file system)", "free space."
    )
    nothing_lost(open_store(folder / "after"))


@pytest.mark.parametrize("command", COMMANDS[:3], ids=lambda command: command[0])
def test_a_full_disk_is_a_sentence(store: Store, command: list[str]) -> None:
    """If it fails, a full disk leaves an incomplete bundle in the store, or CURRENT names a missing one."""
    folder = store.path.parent
    name, *arguments = (word.format(folder=folder / "whole") for word in command)
    fill = "{ cat /dev/zero > mount/rest 2> /dev/null || true; }"
    before = [*in_a_mount("10m", fill), folder, ROOT]
    sentence(
        said(name, folder / "mount" / "store", *arguments, before=before), "(No space left on device)", "free space."
    )
    nothing_lost(open_store(folder / "after"))


def test_pruning_frees_a_full_disk(store: Store) -> None:
    """If it fails, a full disk can only be emptied by hand."""
    folder = store.path.parent
    fill = "{ cat /dev/zero > mount/rest 2> /dev/null || true; }"
    assert said("prune", folder / "mount" / "store", before=[*in_a_mount("10m", fill), folder, ROOT]) == "done"
    assert open_store(folder / "after").bundles() == ["none", "one"]


@pytest.mark.parametrize("most_bytes", [0, 10_000])
def test_files_that_cannot_grow_are_a_sentence(store: Store, folder: Path, most_bytes: int) -> None:
    """If it fails, a quota ends in a traceback, or a bundle with a truncated file is published."""
    elsewhere = other_file_system(folder)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    with tempfile.TemporaryDirectory(dir=elsewhere) as outside:
        whole = shutil.copytree(folder / "whole", Path(outside) / "whole")
        sentence(said("publish", store.path, whole, "three", preexec_fn=limit), str(store.path), "(File too large)")
    nothing_lost(store)


def other_file_system(folder: Path) -> Path:
    found = [path for path in (Path("/dev/shm"), ROOT) if path.is_dir() and path.stat().st_dev != folder.stat().st_dev]
    if not found:
        pytest.skip("there is only one file system here")
    return found[0]


def test_a_bundle_comes_from_another_file_system(store: Store, folder: Path) -> None:
    """If it fails, a bundle on another file system cannot be published, or is lost."""
    with tempfile.TemporaryDirectory(dir=other_file_system(folder)) as outside:
        whole = shutil.copytree(folder / "whole", Path(outside) / "whole")
        assert said("publish", store.path, whole, "three") == "done"
        verify_bundle(whole)
    with open_bundle(store.bundle_path("three")) as retriever:
        assert retriever.check_golden().passed
    assert list((store.path / ".incoming").iterdir()) == []


def test_of_several_publishers_with_one_name_one_wins(store: Store, folder: Path) -> None:
    """If it fails, a bundle is replaced by another one while it is served, or mixed with it."""
    command = [sys.executable, "-m", "tests.support.programs.store_program", "publish", str(store.path)]
    whole = [shutil.copytree(folder / "whole", folder / f"whole-{number}") for number in range(4)]
    with ExitStack() as stack:
        publishers = [
            stack.enter_context(running([*command, path, "three"], cwd=ROOT, stdout=subprocess.PIPE)) for path in whole
        ]
        lines = sorted(publisher.communicate(timeout=120)[0].strip() for publisher in publishers)
    assert lines.count("done") == 1, lines
    for line in lines:
        assert line == "done" or line.endswith("already has a bundle 'three'. Choose another name."), line
    store.verify("three")
    assert sum(path.is_dir() for path in whole) == 3  # what was refused stays where it was
