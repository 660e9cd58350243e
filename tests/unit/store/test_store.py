"""The store: publish, activate, roll back and prune, and their errors."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from retrieval import open_bundle
from retrieval.errors import BundleError
from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.bundles import make_bundle, make_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", "one", "two", "three")


def test_an_activated_bundle_answers(store: Store) -> None:
    """If it fails, readers of the store do not get an activated bundle."""
    assert open_bundle(store.path).search(["red shoes"], 1)[0][0].id.startswith("one-")
    store.activate("two")
    assert open_bundle(store.path).name == "two"
    assert open_bundle(store.path).search(["red shoes"], 1)[0][0].id.startswith("two-")


def test_rolling_back_retraces_the_activations(store: Store) -> None:
    """If it fails, a rollback does not activate the previous bundle."""
    store.activate("two")
    store.activate("three")
    assert (store.previous(), store.rollback(), store.active()) == ("two", "two", "two")
    assert (store.previous(), store.rollback(), store.active()) == ("one", "one", "one")
    with pytest.raises(BundleError, match="no earlier bundle"):
        store.rollback()
    store.activate("three")
    assert store.previous() == "one"


def test_a_crash_between_the_two_writes_of_an_activation_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a machine that dies while activating forgets which bundle to roll back to."""
    store.activate("two")
    replace = os.replace

    def dying(source: str, target: str, **folders: int) -> None:
        if target == "CURRENT":
            raise KeyboardInterrupt
        replace(source, target, **folders)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            store.activate("three")
    assert (store.active(), store.previous()) == ("two", "one")


def test_a_removed_predecessor_is_passed_over(store: Store) -> None:
    """If it fails, a rollback activates a bundle that was removed."""
    store.activate("two")
    store.activate("three")
    shutil.rmtree(store.bundle_path("two"))
    assert store.rollback() == "one"


def test_pruning_keeps_what_is_needed(store: Store) -> None:
    """If it fails, pruning removes the active bundle, or the one to roll back to."""
    store.activate("three")
    assert store.prune(0) == ["two"]
    assert sorted(store.bundles()) == ["one", "three"]
    assert store.rollback() == "one"


def test_pruning_keeps_the_newest(store: Store) -> None:
    """If it fails, pruning keeps fewer bundles than requested."""
    assert store.prune(3) == []
    newest = store.bundles()[-1]
    store.prune(1)
    assert newest in store.bundles()


def test_a_name_in_use_is_refused_and_its_bundle_stays(store: Store) -> None:
    """If it fails, publishing overwrites a bundle that is being served."""
    before = open_bundle(store.bundle_path("two")).search(["red"], 3)
    with store.incoming() as folder:
        make_bundle(folder, seed=9, prefix="other")
        with pytest.raises(BundleError, match="already has a bundle 'two'"):
            store.publish(folder, "two")
    assert open_bundle(store.bundle_path("two")).search(["red"], 3) == before
    assert list((store.path / ".incoming").iterdir()) == []


def test_a_damaged_bundle_is_neither_published_nor_activated(store: Store) -> None:
    """If it fails, a bundle that a service cannot open becomes the active one."""
    with store.incoming() as folder:
        make_bundle(folder)
        (folder / "labels.arrow").write_bytes(b"not this")
        with pytest.raises(BundleError, match=r"labels\.arrow"):
            store.publish(folder, "four")
    (store.bundle_path("two") / "golden.json").unlink()
    with pytest.raises(BundleError, match=r"golden\.json is missing"):
        store.activate("two")
    assert store.active() == "one"


@pytest.mark.parametrize("name", ["", "..", "../one", "a/b", "-x", ".x", "a" * 65, "a b", "one\n"])
def test_a_hostile_name_is_refused(store: Store, name: str) -> None:
    """If it fails, a bundle name leads outside the store's folder."""
    for act in (store.activate, store.bundle_path, store.verify):
        with pytest.raises(BundleError, match="not a bundle name"):
            act(name)


def test_a_store_names_what_it_has(tmp_path: Path, store: Store) -> None:
    """If it fails, the error for a misspelt name does not help the user."""
    with pytest.raises(BundleError, match=r"no bundle 'tow'. It has: .*one"):
        store.activate("tow")
    with pytest.raises(BundleError, match="neither a store"):
        open_bundle(tmp_path / "nothing")


def test_a_store_without_an_active_bundle_says_so(tmp_path: Path) -> None:
    """If it fails, opening a store before the first activation ends in a traceback."""
    store = open_store(tmp_path / "store")
    assert (store.active(), store.previous(), store.bundles()) == (None, None, [])
    with store.incoming() as folder:
        store.publish(make_bundle(folder), "one")
    with pytest.raises(BundleError, match="no active bundle; it has: one"):
        open_bundle(store.path)


def test_a_bundle_on_another_file_system_is_copied(tmp_path: Path, store: Store) -> None:
    """If it fails, a bundle built on another file system cannot be published."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system at /dev/shm")
    with TemporaryDirectory(dir=memory) as elsewhere:
        folder = make_bundle(Path(elsewhere) / "bundle")
        assert store.publish(folder, "four") == store.path / "bundles" / "four"
        assert folder.is_dir()
    store.activate("four")


def test_a_store_that_cannot_be_written_says_so(store: Store) -> None:
    """If it fails, a read-only or full disk ends in a traceback."""
    (store.path / ".lock").unlink()
    (store.path / ".lock").mkdir()  # also root, who may write anywhere, cannot open a folder for writing
    for act in (lambda: store.activate("two"), store.rollback, lambda: store.prune(0)):
        with pytest.raises(BundleError, match=r"\.lock is not a regular file"):
            act()
    assert store.active() == "one"


def test_activating_the_active_bundle_changes_nothing(store: Store) -> None:
    """If it fails, a repeated deployment makes the bundle its own predecessor, and a rollback does nothing."""
    store.activate("two")
    store.activate("two")
    assert store.rollback() == "one"


def test_pruning_leaves_what_a_reader_holds_open(tmp_path: Path) -> None:
    """If it fails, a service that still answers from an older bundle loses its files, or no bundle is ever removed."""
    store = make_store(tmp_path / "store", "one", "two", "three", "four")
    with open_bundle(store.bundle_path("two")):
        assert store.prune(0) == ["three", "four"]
    assert store.prune(0) == ["two"]
    assert store.bundles() == ["one"]


def test_a_reader_that_died_holds_nothing(tmp_path: Path) -> None:
    """If it fails, a crashed engine keeps its bundle in the store forever."""
    store = make_store(tmp_path / "store", "one", "two")
    program = "import signal, sys\nfrom retrieval import open_bundle\nheld = open_bundle(sys.argv[1])\n"
    program += "print('open', flush=True)\nsignal.pause()"
    command = [sys.executable, "-c", program, str(store.bundle_path("two"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        assert store.prune(0) == []
        reader.kill()
    assert store.prune(0) == ["two"]


def test_what_a_dead_command_left_goes_with_the_next_change(store: Store) -> None:
    """If it fails, files of interrupted publications are never removed, or those of running ones are."""
    left = store.path / ".incoming"
    (left / "dead" / "one").mkdir(parents=True)
    (left / "dead" / "one" / "index.hnsw").write_bytes(b"half")
    (left / "CURRENT").write_text("tw")
    with store.incoming() as folder:
        store.activate("two")
        assert list(left.iterdir()) == [folder.parent]
    assert list(left.iterdir()) == []


def test_a_bundle_that_is_being_verified_is_not_pruned(store: Store) -> None:
    """If it fails, a bundle can be removed between its verification and its activation, and CURRENT names no bundle."""

    def meanwhile(folder: Path, trusted: Sequence[str]) -> None:
        assert store.prune(0) == ["two"]

    Store(store.path, meanwhile).activate("three")
    assert store.active() == "three"


def test_a_small_file_is_replaced_whole_and_from_what_it_was(store: Store) -> None:
    """If it fails, two writers of one file lose a change, or a reader sees an incomplete file."""
    asked: list[bytes | None] = []
    for content in ("first", "second"):
        store.amend("PAUSED.json", lambda now, content=content: (asked.append(now), content)[1])
    assert asked == [None, b"first"]
    assert (store.path / "PAUSED.json").read_text() == "second"


def test_rolling_back_compares_all_but_what_the_caller_has_open(store: Store) -> None:
    """If it fails, a rollback to an open bundle reads it again, or a damaged bundle becomes active."""
    store.activate("two")
    index = store.bundle_path("one") / "index.hnsw"
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="damaged"):
        store.rollback("three")
    assert store.rollback("one") == store.active() == "one"


def test_a_bundle_is_never_its_own_predecessor(tmp_path: Path) -> None:
    """If it fails, a rollback has no effect after `prune` removed the bundle between two activations."""
    store = Store(make_store(tmp_path / "store", "one", "two", "three").path, lambda folder, trusted: None)
    for name in ("one", "two", "one", "three", "one"):
        store.activate(name)
    assert store.prune(0) == ["two"]
    assert store.rollback() == "three"
    assert store.rollback() == "one"
    assert store.previous() is None
    with pytest.raises(BundleError, match="no earlier bundle"):
        store.rollback()
