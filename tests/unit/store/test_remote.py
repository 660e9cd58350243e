"""Stores behind URLs: downloads, the cache, changes at the URL, and the messages of commands."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from retrieval import open_bundle
from retrieval.bundle.manifest import MANIFEST, QUERY_ENCODER, TOKENIZER
from retrieval.bundle.signatures import SIGNATURE, new_keys
from retrieval.errors import BadInput, BundleError
from retrieval.open import cache_store, open_store
from retrieval.store.paused_labels import PAUSED
from retrieval.store.pull import pull
from retrieval.store.remote import NotSeekable, seek
from retrieval.system.urls import as_url
from tests.support.bundles import make_bundle, make_store
from tests.support.command import run

URL = "memory://shop/store"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "store", "one", "two").path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache folder of this test, which commands use too."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory(made: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """Copy the store of `made` to fsspec's memory file system at URL."""
    files = fsspec.filesystem("memory")
    files.put(str(made), "/shop/store", recursive=True)
    yield files
    files.rm("/shop", recursive=True)


def test_a_url_answers_as_the_folder_does(made: Path, memory: fsspec.AbstractFileSystem, cache: Path) -> None:
    """If it fails, a fetched bundle differs from the published one, or store commands fail on the cache."""
    with open_bundle(URL) as fetched, open_bundle(made) as there:
        assert fetched.name == "one"
        assert fetched.search(["red shoes"], 5) == there.search(["red shoes"], 5)
    store = cache_store(URL)
    assert store.path.parent == cache
    assert (store.bundles(), store.active()) == (["one"], "one")
    assert store.verify("one").labels.count == 200


def test_cached_files_are_not_downloaded_again(memory: fsspec.AbstractFileSystem) -> None:
    """If it fails, every start of a program downloads gigabytes."""
    open_bundle(URL).close()
    for path in memory.ls("/shop/store/bundles/one", detail=False):
        if not path.endswith(MANIFEST):
            memory.rm(path)
    with open_bundle(URL) as retriever:
        assert retriever.search(["red shoes"], 1)


def test_an_activation_is_seen_at_the_next_opening(memory: fsspec.AbstractFileSystem) -> None:
    """If it fails, the bundle that was active at the first download is used for ever."""
    for name in ("one", "two", "one"):
        memory.pipe("/shop/store/CURRENT", f"{name}\n".encode())
        with open_bundle(URL) as retriever:
            assert retriever.name == cache_store(URL).active() == name
    assert sorted(cache_store(URL).bundles()) == ["one", "two"]
    assert cache_store(URL).previous() == "two"


def test_a_damaged_list_of_paused_labels_in_the_cache_is_replaced(memory: fsspec.AbstractFileSystem) -> None:
    """If it fails, one damaged byte in the cache prevents every use of an undamaged store."""
    memory.pipe("/shop/store/PAUSED.json", b'{"paused": ["one-1"]}')
    open_bundle(URL).close()
    (cache_store(URL).path / PAUSED).write_bytes(b"\xff")
    with open_bundle(URL) as retriever:
        assert retriever.paused == {"one-1"}


def test_a_file_that_an_earlier_bundle_brought_is_not_fetched_again(memory: fsspec.AbstractFileSystem) -> None:
    """If it fails, the tokenizer and encoders that two bundles share are downloaded twice."""
    open_bundle(URL).close()
    memory.rm(f"/shop/store/bundles/two/{TOKENIZER}")
    memory.pipe("/shop/store/CURRENT", b"two\n")
    with open_bundle(URL) as retriever:
        assert retriever.name == "two"
    memory.rm(f"/shop/store/bundles/one/{QUERY_ENCODER}")
    memory.pipe("/shop/store/CURRENT", b"one\n")
    shutil.rmtree(cache_store(URL).bundle_path("one"))
    with pytest.raises(BundleError, match=rf"{URL}/bundles/one/{QUERY_ENCODER} does not exist"):
        open_bundle(URL)


def test_one_bundle_has_a_url_too(made: Path) -> None:
    """If it fails, a single bundle in a bucket cannot be fetched."""
    url = f"file://{made / 'bundles' / 'two'}"
    with open_bundle(url) as retriever:
        assert retriever.name == "two"
        assert retriever.search(["red shoes"], 1)[0][0].id.startswith("two-")


def test_a_bundle_is_pulled_into_a_local_store(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a bundle from a bucket cannot be pulled into a local store, or pull activates it."""
    own = make_store(tmp_path / "own", "mine")
    assert run("bundles", "pull", URL, "--store", own.path, "--name", "two") == 0
    assert (own.active(), sorted(own.bundles())) == ("mine", ["mine", "two"])
    assert run("bundles", "pull", URL, "--store", own.path, "--activate") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Active: {own.path / 'bundles' / 'one'}"
    assert (own.active(), own.previous()) == ("one", "mine")


def test_pulling_tells_how_far_it_is(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """If it fails, a long download has no progress bar, or one that exceeds 100 %."""
    told: list[tuple[int, int]] = []
    pull(URL, open_store(tmp_path / "own"), progress=lambda done, total: told.append((done, total)))
    size = sum(entry.bytes for entry in open_store(tmp_path / "own").manifest("one").files.values())
    assert {total for _, total in told} == {size}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (size, size)


def test_the_reading_commands_take_a_url(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, commands that only read a store do not accept its URL."""
    assert run("bundles", "list", URL) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in listed[1:]] == [["*", "one"], ["two", "2026-11-22T01:00:00Z"]]
    assert run("bundles", "show", URL, "two") == 0
    assert json.loads(capsys.readouterr().out)["labels"]["count"] == 200
    assert run("bundles", "verify", URL, "two") == 0
    assert "two is valid" in capsys.readouterr().out
    assert run("search", URL, "red shoes", "-k", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == "one"
    (tmp_path / "queries.jsonl").write_text('{"query": "red shoes"}\n')
    asked = ("--input", tmp_path / "queries.jsonl", "--output", tmp_path / "matches.jsonl")
    assert run("predict", "--bundle", URL, *asked, "-k", "1") == 0
    assert json.loads((tmp_path / "matches.jsonl").read_text())["id"].startswith("one-")
    assert run("bundles", "diff", URL, "one", "two", "--queries", tmp_path / "queries.jsonl") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["bundles", "activate", "s3://shop/store", "one"],
        ["bundles", "rollback", "s3://shop/store"],
        ["bundles", "prune", "s3://shop/store"],
        ["bundles", "pull", URL, "--store", "s3://shop/store"],
        ["export", "checkpoint", "--store", "s3://shop/store"],
    ],
)
def test_a_command_that_changes_a_store_refuses_a_url(
    memory: fsspec.AbstractFileSystem, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a local folder called `s3:` is created instead."""
    assert run(*arguments) == 1
    assert capsys.readouterr().err == (
        "error: s3://shop/store is a URL, and only a store in a folder can be changed. Fetch its bundles into a folder "
        "with `diptych bundles pull`.\n"
    )
    assert not Path("s3:").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bundles", "show", URL, "tow"], "json does not exist. The bundles of memory://shop/store are: one, two."),
        (["bundles", "show", URL, "../one"], "'../one' is not a bundle name"),
        (["bundles", "list", "memory://shop/stoer"], "memory://shop/stoer is not a store: it has no folder bundles"),
        (["search", "memory://shop/stoer", "red"], "is neither a store with an active bundle (no CURRENT) nor"),
        (["search", "memory://", "red"], "memory:// is not the URL of a store"),
        (["search", "ftp://me:secret@host/store", "red"], "The URL contains a password. Remove it"),
        (["search", "foo://shop/store", "red"], "fsspec has no driver for foo://"),
        (["bundles", "pull", "store"], "store is not the URL of a store, such as s3://bucket/store."),
        (["bundles", "pull", URL, "--activate"], "--activate needs --store"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    memory: fsspec.AbstractFileSystem, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a mistyped URL prints a traceback, or a password."""
    assert run(*arguments) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert "secret" not in told


def test_a_signature_made_later_is_fetched_with_it(made: Path, tmp_path: Path) -> None:
    """If it fails, a bundle that was signed after it was cached is refused for ever."""
    keys, there = new_keys(), tmp_path / "there"
    shutil.copytree(made, there)
    url = f"file://{there}"
    open_bundle(url).close()
    with pytest.raises(BundleError, match="is not signed"):
        open_bundle(url, trusted=[keys.trusted])
    open_store(there).sign("one", keys.signing)
    open_bundle(url, trusted=[keys.trusted]).close()
    kept = cache_store(url).bundle_path("one") / SIGNATURE
    before = kept.read_bytes()
    open_store(there).sign("one", new_keys().signing)
    with pytest.raises(BundleError, match="is not trusted"):
        open_bundle(url, trusted=[keys.trusted])
    assert kept.read_bytes() == before


def test_a_name_is_for_good(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """If it fails, a new bundle with the name of an old one is confused with it."""
    open_bundle(URL).close()
    memory.rm("/shop/store/bundles/one", recursive=True)
    memory.put(str(make_bundle(tmp_path / "other", seed=9)), "/shop/store/bundles/one", recursive=True)
    with pytest.raises(
        BundleError, match=r"bundles/one and memory://shop/store/bundles/one are different bundles .*remove"
    ):
        open_bundle(URL)
    shutil.rmtree(cache_store(URL).bundle_path("one"))
    with open_bundle(URL) as retriever:
        assert retriever.search(["red shoes"], 1)[0][0].id.startswith("label-")


def test_the_cache_is_where_it_is_told_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it fails, DIPTYCH_CACHE is ignored, or two stores share one folder."""
    assert cache_store(URL, tmp_path / "here").path.parent == tmp_path / "here"
    assert cache_store(URL).path.parent == tmp_path / "cache"
    monkeypatch.delenv("DIPTYCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_store(URL).path.parent == tmp_path / "xdg" / "diptych"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_store(URL).path.parent == tmp_path / ".cache" / "diptych"
    assert cache_store(URL).path == cache_store(URL + "/").path != cache_store("memory://shop-store").path


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/store", "s3://bucket/store"),
        (Path("s3://bucket/store"), "s3://bucket/store"),
        (Path("file:///srv/store"), "file:///srv/store"),
        ("simplecache::s3://bucket/store", "simplecache::s3://bucket/store"),
        ("store", None),
        ("/srv/a:b/store", None),
        ("C:/store", None),
        (Path("./s3"), None),
    ],
)
def test_what_is_a_url(place: Path | str, url: str | None) -> None:
    """If it fails, a path is treated as a URL, or a URL as a path."""
    assert as_url(place) == url


def without(package: str, program: str, folder: Path) -> str:
    """Run a program in a process that cannot import a package; return the last line of its output."""
    (folder / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}', name='{package}')")
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    return (ended.stdout + ended.stderr).strip().splitlines()[-1]


@pytest.mark.parametrize(("package", "extra"), [("fsspec", "s3"), ("s3fs", "s3"), ("gcsfs", "gcs"), ("adlfs", "azure")])
def test_a_missing_driver_names_the_extra_that_brings_it(package: str, extra: str, tmp_path: Path) -> None:
    """If it fails, a missing driver ends in a traceback, or the message does not name the package."""
    scheme = {"gcs": "gs", "azure": "az"}.get(extra, extra)
    said = without(package, f"import diptych; diptych.main(['search', '{scheme}://shop/store', 'red'])", tmp_path)
    assert said.startswith(f"error: {scheme}://shop/store needs a package that is not installed (")
    assert said.endswith(f"). Install it with: pip install 'diptych[{extra}]'.")


def test_a_local_store_needs_no_fsspec(made: Path, tmp_path: Path) -> None:
    """If it fails, the base installation cannot open a folder, or loads a network client to do so."""
    program = f"from retrieval import open_bundle; print(open_bundle({str(made)!r}).name)"
    assert without("fsspec", program, tmp_path) == "one"


def test_a_url_for_a_store_to_change_is_refused_by_the_library_too() -> None:
    """If it fails, `open_store("s3://…")` silently uses a local folder of that name."""
    with pytest.raises(BadInput, match="is a URL, and only a store in a folder can be changed"):
        open_store("s3://shop/store")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (io.UnsupportedOperation("seek"), NotSeekable),
        (ValueError("Cannot seek streaming HTTP file"), NotSeekable),
        (NotImplementedError(), NotSeekable),
        (ConnectionResetError("connection reset"), ConnectionResetError),
        (TimeoutError("timed out"), TimeoutError),
    ],
)
def test_only_a_driver_that_cannot_seek_starts_a_download_again(error: Exception, expected: type[Exception]) -> None:
    """If it fails, a network error while a download is resumed discards what has been downloaded."""

    class Source:
        def seek(self, start: int) -> None:
            raise error

    with pytest.raises(expected):
        seek(Source(), 5)
