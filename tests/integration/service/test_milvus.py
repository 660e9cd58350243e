"""An index in Milvus, with a real Milvus Lite server: export, load, activation, rollback, prune, service, outages."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval import open_bundle
from retrieval.errors import BundleError, IndexUnavailable
from retrieval.milvus.collection import collection_name, with_server
from retrieval.milvus.settings import MilvusSettings
from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.bundles import WORDS
from tests.support.command import run
from tests.support.milvus import LiteProcess
from tests.support.service import Reply, Service, command_line, serving, wait_until

QUERIES = ["cheap running shoes", "red winter city", *WORDS]
BODY = json.dumps({"queries": ["cheap running shoes"], "k": 5}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteProcess]:
    with LiteProcess(tmp_path_factory.mktemp("milvus")) as running:
        yield running


@pytest.fixture(autouse=True)
def address(server: LiteProcess, monkeypatch: pytest.MonkeyPatch) -> MilvusSettings:
    """The settings of all commands; searches may take long on a busy machine."""
    monkeypatch.setenv("DIPTYCH_MILVUS_URL", server.url)
    monkeypatch.setenv("DIPTYCH_MILVUS_SECONDS", "60")
    return MilvusSettings(server.url, seconds=60)


@pytest.fixture(scope="module")
def exported(words_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the bundles `embedded`, `first` and `second`; the last two have their index in Milvus."""
    folder = tmp_path_factory.mktemp("exported")
    options = (
        ("embedded", "--index", "hnsw"),
        ("first", "--index", "milvus", "--parquet", folder / "rows.parquet"),
        ("second", "--index", "milvus", "--m", "16"),
    )
    for name, *rest in options:
        assert run("export", words_checkpoint, "--store", folder / "store", "--name", name, *rest) == 0
    return folder / "store"


@pytest.fixture
def store(exported: Path) -> Store:
    """The store, with the collections of both bundles."""
    for name in ("first", "second"):
        assert run("bundles", "load", exported, name) == 0
    return open_store(exported)


def alias_of(address: MilvusSettings) -> list[str]:
    """Return the collections that the alias of the active bundle names."""
    return list(
        with_server(
            lambda server: [name for name in server.collections() if address.alias in server.aliases(name)], address
        )
    )


def collection_of(store: Store, name: str, address: MilvusSettings) -> str:
    return collection_name(store.manifest(name), address.prefix)


def test_it_answers_as_the_embedded_index(store: Store) -> None:
    """If it fails, candidates from Milvus are of other rows, or the scores are not those of the whole vectors."""
    with (
        open_bundle(store.bundle_path("embedded")) as embedded,
        open_bundle(store.bundle_path("first")) as remote,
    ):
        expected, found = (retriever.search(QUERIES, 10) for retriever in (embedded, remote))
        filtered = remote.search(QUERIES, 10, exact=True)
    overlaps = [len({one.id for one in a} & {one.id for one in b}) / 10 for a, b in zip(expected, found, strict=True)]
    assert sum(overlaps) / len(overlaps) >= 0.99
    for before, after, exact in zip(expected, found, filtered, strict=True):
        scores = {hit.id: hit.score for hit in before}
        assert all(abs(scores[hit.id] - hit.score) < 1e-5 for hit in after if hit.id in scores)
        assert exact[0].score == pytest.approx(after[0].score, abs=1e-5)


def test_paused_labels_stay_out(store: Store) -> None:
    """If it fails, a filter is not applied to candidates from Milvus."""
    with open_bundle(store.bundle_path("first")) as retriever:
        best = retriever.search(QUERIES[:1], 3)[0]
        retriever.pause([best[0].id])
        assert [hit.id for hit in retriever.search(QUERIES[:1], 2)[0]] == [hit.id for hit in best[1:]]


def test_the_alias_follows_activation_and_rollback(store: Store, address: MilvusSettings) -> None:
    """If it fails, other readers of the alias search the labels of a bundle that is not active."""
    for name in ("first", "second"):
        store.activate(name)
        assert alias_of(address) == [collection_of(store, name, address)]
    assert store.rollback() == "first"
    assert alias_of(address) == [collection_of(store, "first", address)]


def test_a_bundle_that_is_not_loaded_is_not_activated(
    exported: Path, address: MilvusSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a service switches to a bundle that finds no labels."""
    monkeypatch.setenv("DIPTYCH_MILVUS_PREFIX", "empty")
    store = open_store(exported)
    active = store.active()
    with pytest.raises(BundleError, match="bundles load"):
        store.activate("first")
    assert store.active() == active


def test_prune_removes_collections_of_no_bundle(
    store: Store, address: MilvusSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, removed bundles stay in the server's memory, or those in use are dropped."""
    facts_of = collection_of(store, "first", address)
    from retrieval.milvus.server import GraphFacts

    with_server(lambda server: server.create(f"{address.prefix}_unused", GraphFacts(8, 16, 100), "test"), address)
    assert run("bundles", "prune", store.path, "--keep", "9") == 0
    assert "diptych_unused" in capsys.readouterr().out
    left = with_server(lambda server: server.collections(), address)
    assert facts_of in left
    assert f"{address.prefix}_unused" not in left


def test_a_complete_collection_is_not_filled_again(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, a second load empties a collection that a service searches."""
    assert run("bundles", "load", store.path, "first") == 0
    assert "is in Milvus already" in capsys.readouterr().out


def test_rows_are_in_the_exported_file(exported: Path) -> None:
    """If it fails, a bulk insert gives Milvus other vectors than `bundles load` sends."""
    import numpy as np
    import pyarrow.parquet as pq

    from retrieval.loading import index_rows

    table = pq.read_table(exported.parent / "rows.parquet")
    manifest, blocks = index_rows(exported / "bundles" / "first")
    vectors = np.concatenate(list(blocks))
    assert table.column("id").to_pylist() == list(range(manifest.index_size))
    np.testing.assert_array_equal(np.stack(table.column("vector").to_numpy()), vectors)


def predict(service: Service) -> Reply:
    return service.ask("POST", "/predict", BODY)


def test_an_outage_is_answered_503_until_the_server_is_back(store: Store, server: LiteProcess) -> None:
    """If it fails, an outage of Milvus blocks the service, crashes engines, or outlasts the server's return."""
    store.activate("first")
    with serving(store.path, milvus_wait_seconds=0, milvus_seconds=60, watch_seconds=0) as service:
        before = predict(service)
        assert before.status == 200
        children = service.engines()
        server.kill()
        try:
            refused = wait_until(lambda: reply if (reply := predict(service)).status == 503 else None)
            assert refused.json()["error"]["code"] == "index_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
        finally:
            server.start()
        after = wait_until(lambda: reply if (reply := predict(service)).status == 200 else None)
        assert after.body == before.body
        assert service.engines() == children


def test_no_request_is_lost_through_a_restart(store: Store, server: LiteProcess) -> None:
    """If it fails, requests fail while the server restarts, although they are allowed to wait for it."""
    store.activate("first")
    settings = {"milvus_wait_seconds": 60, "milvus_seconds": 60, "deadline_seconds": 120, "watch_seconds": 0}
    with serving(store.path, **settings) as service:
        expected = predict(service).body
        server.kill()
        replies: list[Reply] = []
        threads = [threading.Thread(target=lambda: replies.append(predict(service))) for _ in range(6)]
        for thread in threads:
            thread.start()
        server.start()
        for thread in threads:
            thread.join()
    assert [reply.status for reply in replies] == [200] * 6
    assert {reply.body for reply in replies} == {expected}


def test_an_engine_whose_helper_died_is_replaced(store: Store) -> None:
    """If it fails, the end of the process that searches Milvus ends all answers."""
    store.activate("first")
    with serving(store.path, milvus_seconds=60, watch_seconds=0) as service:
        expected = predict(service).body
        hosts = [pid for pid in service.engines() if "retrieval.milvus.host" in command_line(pid)]
        assert len(hosts) == 1
        os.kill(hosts[0], signal.SIGKILL)
        assert predict(service).body == expected


def test_several_engines_have_a_helper_each(store: Store) -> None:
    """If it fails, several engines share the sockets to one helper, and get each other's candidates."""
    store.activate("first")
    with serving(store.path, engines=2, milvus_seconds=60, watch_seconds=0) as service:
        lines = [command_line(pid) for pid in service.engines()]
        assert sorted("retrieval.milvus.host" in line for line in lines) == [False, False, True, True]
        assert {predict(service).body for _ in range(8)} == {predict(service).body}


def test_without_a_server_a_search_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a library user waits forever, or gets wrong answers, without Milvus."""
    monkeypatch.setenv("DIPTYCH_MILVUS_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("DIPTYCH_MILVUS_SECONDS", "1")
    monkeypatch.setenv("DIPTYCH_MILVUS_WAIT_SECONDS", "0")
    with pytest.raises(IndexUnavailable, match="Check that it runs"):
        open_bundle(store.bundle_path("first"))
