"""A store that an attacker can write to: symlinks, pipes and endless files in it do no harm and block no command."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import retrieval.store.folder
import retrieval.system.file_locks
from retrieval import open_bundle
from retrieval.errors import BundleError
from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from retrieval.store.paused_labels import PAUSED, read_paused
from tests.support.bundles import make_bundle, make_store
from tests.support.command import run

ENDLESS = 3 << 30  # bytes of a file with a hole: it takes no room on the disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "store", "one", "two").path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """Make a store with the bundles one and two; two was activated first, then one."""
    copied = Store(shutil.copytree(made, tmp_path / "store"), verify_in_process)
    copied.activate("two")
    copied.activate("one")
    return copied


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Make a folder with files outside the store."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "file").write_text("two\n")
    (folder / "deep" / "file").write_text("precious")
    return folder


def untouched(outside: Path) -> bool:
    return (
        sorted(path.name for path in outside.iterdir()) == ["deep", "file"]
        and (outside / "file").read_text() == "two\n"
        and (outside / "deep" / "file").read_text() == "precious"
    )


def publish(store: Store) -> None:
    with store.incoming() as folder:
        store.publish(make_bundle(folder, seed=7), "new")


CHANGES: dict[str, Callable[[Store], object]] = {
    "publish": publish,
    "activate": lambda store: store.activate("two"),
    "rollback": lambda store: store.rollback(),
    "prune": lambda store: store.prune(0),
    "pause": lambda store: store.amend(PAUSED, lambda content: '{"paused": []}'),
    "attach": lambda store: store.attach_signature("two", "ed25519 a b"),
}


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in (".incoming", ".lock") for change in sorted(CHANGES)]
    + [("bundles", change) for change in sorted(CHANGES.keys() - {"pause"})],  # which does not look at them
)
def test_a_link_in_a_store_is_not_followed(store: Store, outside: Path, name: str, change: str) -> None:
    """If it fails, a command removes, empties or writes to the target of a symlink in the store."""
    path = store.path / name
    if path.is_dir():
        path.rename(store.path.parent / "before")
    else:
        path.unlink()
    path.symlink_to(outside / "file" if name == ".lock" else outside)
    with pytest.raises(BundleError) as refused:
        CHANGES[change](store)
    assert untouched(outside)
    assert name in str(refused.value) or name == "bundles"
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_links_that_lie_in_the_staging_folder_are_removed_alone(store: Store, outside: Path, change: str) -> None:
    """If it fails, the next change of a store removes the target of a link in .incoming."""
    (store.path / ".incoming" / "folder").symlink_to(outside)
    (store.path / ".incoming" / "file").symlink_to(outside / "file")
    (store.path / ".incoming" / "left").mkdir()
    (store.path / ".incoming" / "left" / "link").symlink_to(outside)
    (store.path / ".incoming" / "left" / "held").symlink_to(outside / "file")
    os.mkfifo(store.path / ".incoming" / "pipe")
    CHANGES[change](store)
    assert untouched(outside)
    assert list((store.path / ".incoming").iterdir()) == []


@pytest.mark.parametrize("name", ["CURRENT", "HISTORY", PAUSED])
@pytest.mark.parametrize("change", ["activate", "rollback", "pause"])
def test_a_file_that_is_a_link_is_not_read_and_not_written_through(
    store: Store, outside: Path, name: str, change: str
) -> None:
    """If it fails, a link selects the active bundle, or a file outside the store is overwritten."""
    (store.path / name).unlink(missing_ok=True)
    (store.path / name).symlink_to(outside / "file")
    with suppress(BundleError):
        CHANGES[change](store)
    assert untouched(outside)


def test_bundles_that_are_links_are_none(store: Store, outside: Path, tmp_path: Path) -> None:
    """If it fails, a bundle outside the store is served, verified, pruned or signed through a link."""
    elsewhere = make_bundle(tmp_path / "elsewhere", seed=5)
    files = {item.name for item in elsewhere.iterdir()}
    link = store.path / "bundles" / "link"
    link.symlink_to(elsewhere)
    assert store.bundles() == ["one", "two"]
    for act in (store.activate, store.verify, store.manifest, store.bundle_path):
        with pytest.raises(BundleError, match="link is a symbolic link"):
            act("link")
    with pytest.raises(BundleError, match="link is a symbolic link"):
        open_bundle(link)
    (store.path / "CURRENT").write_text("link\n")
    with pytest.raises(BundleError, match="link is a symbolic link"):
        open_bundle(store.path)
    (store.path / "CURRENT").write_text("one\n")
    store.prune(0)
    assert {item.name for item in elsewhere.iterdir()} == files


def test_a_store_that_is_reached_through_a_link_works(store: Store, tmp_path: Path) -> None:
    """If it fails, a store cannot be opened through a link to its folder."""
    (tmp_path / "link").symlink_to(store.path)
    linked = Store(tmp_path / "link", verify_in_process)
    linked.activate("two")
    publish(linked)
    with open_bundle(tmp_path / "link") as retriever:
        assert retriever.name == "two"
    assert store.active() == "two"


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.mkdir()


def as_endless(path: Path) -> None:
    path.touch()
    os.truncate(path, ENDLESS)


def as_nonsense(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00 no text")


KINDS = (as_pipe, as_folder, as_endless, as_nonsense)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", ["CURRENT", "HISTORY", PAUSED])
def test_a_path_that_is_not_a_file_is_one_sentence_and_blocks_no_command(
    store: Store, name: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a pipe or an endless file in a store blocks every command and service that reads it."""
    (store.path / name).unlink(missing_ok=True)
    make(store.path / name)
    reads: dict[str, Callable[[], object]] = {
        "CURRENT": store.active,
        "HISTORY": store.previous,
        PAUSED: lambda: read_paused(store.path),
    }
    with pytest.raises(BundleError, match=name) as refused:
        reads[name]()
    assert "\n" not in str(refused.value)
    arguments = ("bundles", "rollback", store.path) if name == "HISTORY" else ("search", store.path, "rain")
    assert run(*arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("make", KINDS)
def test_what_is_no_lock_file_blocks_no_command(store: Store, make: Callable[[Path], None]) -> None:
    """If it fails, a pipe in place of the lock file blocks every command that changes a store."""
    (store.path / ".lock").unlink()
    make(store.path / ".lock")
    if make in (as_endless, as_nonsense):
        before = (store.path / ".lock").stat().st_size
        store.activate("two")
        assert (store.path / ".lock").stat().st_size == before
    else:
        with pytest.raises(BundleError, match=r"\.lock"):
            store.activate("two")


def as_on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock like NFS: exclusive locks need files open for writing, and locks of folders are local."""
    flock = fcntl.flock

    def of_nfs(descriptor: object, operation: int) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()  # type: ignore[attr-defined]
        writable = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if operation & fcntl.LOCK_EX and not writable:
            raise OSError(9, os.strerror(9))
        if Path(f"/proc/self/fd/{number}").is_dir():
            return
        flock(number, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)


def test_locks_work_on_nfs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a store on NFS cannot be changed, or loses a bundle that is open or being written."""
    as_on_nfs(monkeypatch)
    with store.incoming() as folder, open_bundle(store.bundle_path("two")):
        (folder / "file").write_text("half a bundle")
        publish(store)
        store.activate("new")
        store.activate("one")
        store.activate("new")
        assert store.prune(0) == []
        assert (folder / "file").is_file()
    assert store.prune(0) == ["two"]
    assert list((store.path / ".incoming").iterdir()) == []


def test_a_bundle_that_cannot_be_locked_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, on NFS a bundle of another user is removed while it is read."""
    as_on_nfs(monkeypatch)
    opened = os.open

    def read_only(path: object, flags: int, *rest: object, **named: object) -> int:
        if path == "manifest.json" and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *rest, **named)  # type: ignore[arg-type]

    publish(store)
    store.activate("new")
    store.activate("one")
    monkeypatch.setattr(os, "open", read_only)
    assert store.prune(0) == []


def test_a_file_system_without_locks_can_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a store on a file system without locks cannot be served."""

    def refused(descriptor: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with open_bundle(store.path) as retriever:
        assert retriever.name == "one"
    with pytest.raises(BundleError, match="No locks available"):
        store.activate("two")


def test_age_is_what_the_manifest_says(store: Store) -> None:
    """If it fails, copying a store (cp -r, rsync without -t) or signing a bundle changes which bundles are pruned."""
    names = {"c": "2026-01-01T00:00:00Z", "b": "2026-01-02T01:00:00+02:00", "a": "2026-01-02T00:00:00Z"}
    for name, created in names.items():
        with store.incoming() as folder:
            store.publish(make_bundle(folder, created=created), name)
    for place, name in enumerate(["one", "a", "b", "c", "two"]):
        os.utime(store.path / "bundles" / name, (place, place))
    assert store.bundles() == ["c", "b", "a", "one", "two"]
    store.activate("c")
    store.activate("b")
    assert store.prune(1) == ["a", "one"]
    assert store.bundles() == ["c", "b", "two"]


@pytest.mark.parametrize("manifest", [None, "{", '{"created": "yesterday"}', '{"created": 5}', "[]"])
def test_bundles_without_a_date_stay_and_are_listed(
    store: Store, manifest: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, prune removes a bundle of a later release, or one that is being copied by hand."""
    folder = store.path / "bundles" / "strange"
    folder.mkdir()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    assert store.bundles() == ["strange", "one", "two"]
    assert run("bundles", "prune", store.path, "--keep", "0") == 0
    assert "the manifest has no date: strange." in capsys.readouterr().err
    assert store.bundles() == ["strange", "one", "two"]


def test_a_locked_manifest_is_an_error_after_a_time_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a process that may read a store can block every command and service that opens its bundles."""
    monkeypatch.setattr(retrieval.system.file_locks, "SHARED_LOCK_SECONDS", 0.1)
    acts: tuple[Callable[[], object], ...] = (lambda: open_bundle(store.path), lambda: store.activate("one"))
    with (store.path / "bundles" / "one" / "manifest.json").open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for act in acts:
            with pytest.raises(BundleError, match=r"manifest\.json is locked by another process"):
                act()
    open_bundle(store.path).close()


def test_a_locked_store_is_an_error_after_a_time_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a process that may read a store can block every activation and rollback without a message."""
    monkeypatch.setattr(retrieval.store.folder, "STORE_LOCK_SECONDS", 0.1)
    store.activate("two")
    with (store.path / ".lock").open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for act in (lambda: store.activate("one"), store.rollback, lambda: store.prune(0)):
            with pytest.raises(BundleError, match=r"\.lock has been locked by another process for 0\.1 s"):
                act()
    store.activate("one")


def test_a_staging_folder_that_cannot_be_looked_at_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a command without free descriptors, or permissions, removes a bundle that another one is writing."""
    opened = os.open

    def refused(path: object, flags: int, *rest: object, **named: object) -> int:
        if path == "held" and not flags & os.O_CREAT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags, *rest, **named)  # type: ignore[arg-type]

    with store.incoming() as folder:
        (folder / "file").write_text("half a bundle")
        monkeypatch.setattr(os, "open", refused)
        store.activate("two")
        assert (folder / "file").is_file()
        monkeypatch.undo()
