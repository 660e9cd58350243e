"""PAUSED.json applies to every way to query, also without a service; invalid files are refused."""

import json
import shutil
from pathlib import Path

import pytest

from retrieval import open_bundle
from retrieval.errors import BundleError
from retrieval.open import open_store
from retrieval.sandboxed_opening import verify_in_subprocess
from retrieval.store.paused_labels import PAUSED, read_paused
from service.bundles.paused_labels import PausedFile
from service.bundles.store_access import StoreAccess
from tests.support.bundles import make_store
from tests.support.command import run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "store", "one", "two").path


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(made, tmp_path / "store")


def best(place: Path | str) -> str:
    """Return the id of the best label of a query."""
    with open_bundle(place) as retriever:
        return retriever.search(["red shoes"], 1)[0][0].id


def pause(store: Path, *ids: str) -> None:
    (store / PAUSED).write_text(json.dumps({"paused": ids}))


@pytest.mark.parametrize("of", ["{store}", "{store}/bundles/one", "file://{store}"])
def test_the_library_leaves_paused_labels_out(store: Path, of: str) -> None:
    """If it fails, a paused label is shown by every command that does not use the service."""
    place = of.format(store=store)
    gone = best(place)
    pause(store, gone, "absent")
    assert best(place) != gone
    pause(store)
    assert best(place) == gone
    pause(store, gone)
    assert best(place) != gone
    (store / PAUSED).unlink()
    assert best(place) == gone


def test_a_caller_can_choose_the_paused_labels(store: Path) -> None:
    """If it fails, the answers with paused labels included cannot be inspected."""
    gone = best(store)
    pause(store, gone)
    with open_bundle(store, paused=()) as retriever:
        assert retriever.search(["red shoes"], 1)[0][0].id == gone


def test_the_commands_leave_paused_labels_out(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, `search`, `predict` or `bundles diff` show paused labels."""
    gone = best(store)
    pause(store, gone)
    assert run("search", store, "red shoes", "--json") == 0
    assert gone not in capsys.readouterr().out
    (tmp_path / "queries.csv").write_text("query\nred shoes\n")
    output = tmp_path / "matches.csv"
    assert run("predict", "--bundle", store, "--input", tmp_path / "queries.csv", "--output", output) == 0
    assert f'"{gone}"' not in output.read_text()
    assert gone not in output.read_text().replace(",", "\n").splitlines()
    assert run("bundles", "diff", store, "one", "two", "--queries", tmp_path / "queries.csv") == 0
    assert gone not in capsys.readouterr().out.split()


def test_an_interrupted_run_restarts_when_the_paused_labels_change(store: Path, tmp_path: Path) -> None:
    """If it fails, `predict` resumes from shards that contain a paused label."""
    from retrieval.offline.batch_search import QueryFormat, run_arguments
    from retrieval.offline.query_files import Queries
    from retrieval.offline.shard_search import SearchOptions

    (tmp_path / "queries.csv").write_text("query\nred shoes\n")
    arguments = []
    for ids in ((), ("one-1",), ("one-1",)):
        pause(store, *ids)
        with open_bundle(store) as retriever:
            queries = Queries(tmp_path / "queries.csv", None)
            arguments.append(run_arguments(retriever, queries, QueryFormat(), SearchOptions(10)))
    assert arguments[0] != arguments[1] == arguments[2]


def test_a_bundle_is_verified_although_its_golden_answers_are_paused(store: Path) -> None:
    """If it fails, a bundle with a paused label in its golden answers can be neither verified nor activated."""
    with open_bundle(store) as retriever:
        golden = [hit.id for hits in retriever.search(["cheap running shoes", "light rain"], 10) for hit in hits]
    pause(store, *golden)
    assert verify_in_subprocess(store / "bundles" / "one").passed
    open_store(store).activate("two")
    with open_bundle(store / "bundles" / "one") as retriever:
        assert retriever.check_golden().passed


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"paused": "a"}', b'{"paused": [1]}', b'{"paused": ["\xff"]}', b"\xff\xfe", b'{"other": []}',
     b"[" * 100_000],
)  # fmt: skip
def test_an_invalid_list_is_one_sentence(store: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, a mistake in the file shows every paused label again, or ends in a traceback."""
    (store / PAUSED).write_bytes(content)
    with pytest.raises(BundleError, match=r"PAUSED\.json is not a list of paused labels \(.*\)\. Write it as"):
        read_paused(store)
    assert run("search", store, "red") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_list_has_a_bound(store: Path) -> None:
    """If it fails, a user who can write the file can fill the memory of every service on the store."""
    pause(store, "a", "b", "a")
    assert read_paused(store, 2) == ("a", "b")
    with pytest.raises(BundleError, match=r"PAUSED\.json lists 2 labels; the limit is 1\."):
        read_paused(store, 1)
    with (store / PAUSED).open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match=r"PAUSED\.json has 1,073,741,824 bytes; such a file has at most 16,777,216"):
        read_paused(store)


def test_a_service_applies_its_limit_and_notices_a_removed_list(store: Path) -> None:
    """If it fails, an edited file can exceed the service's limit, or its removal has no effect."""
    paused = PausedFile(StoreAccess(store, []), 2)
    assert not paused.read()
    pause(store, "a", "b", "c")
    with pytest.raises(BundleError, match="the limit is 2"):
        paused.read()
    pause(store, "a", "b")
    assert paused.read()
    assert paused.ids == ("a", "b")
    (store / PAUSED).unlink()
    assert paused.read()
    assert paused.ids == ()


def test_a_list_that_is_not_utf_8_is_one_sentence_for_a_service(store: Path) -> None:
    """If it fails, one invalid byte ends the background task that polls the store."""
    (store / PAUSED).write_bytes(b'{"paused": ["\xff"]}')
    paused = PausedFile(StoreAccess(store, []), 10)
    with pytest.raises(BundleError, match="is not a list of paused labels"):
        paused.read()
    with pytest.raises(BundleError, match="is not a list of paused labels"):
        paused.change(["a"], [])
