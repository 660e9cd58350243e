"""Queries that end engines, labels that are too large, and bodies that cost much, against a real service."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import helper, numpy_helper

from retrieval.bundle.label_size import label_bytes
from retrieval.bundle.labels import write_labels
from retrieval.bundle.manifest import LABELS
from retrieval.bundle.verified_files import describe_file
from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from service.errors import longest_retry
from tests.support import bundles
from tests.support.bundles import WORDS, label_texts, make_bundle, make_store
from tests.support.service import PATIENCE, Load, Reply, Service, figures, serving, wait_until

POISON = "kids"
MATRIX_WIDTH = 6_000
GOOD = [json.dumps({"queries": [text]}).encode() for text in ("red winter", "light rain")]


def with_a_slow_word(path: Path, word: str) -> None:
    """Change an encoder so that it computes for a minute or so for texts with `word`: products of large matrices."""
    model = onnx.load(path)
    graph = model.graph
    graph.node[-1].output[0] = "plain_vectors"
    constants = {
        "word": np.array(2 + WORDS.index(word)), "large": np.array(MATRIX_WIDTH), "none": np.array(0),
        "twice": np.array([2]),
    }  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    products = [
        helper.make_node("MatMul", [f"matrix_{step}", "matrix_0"], [f"matrix_{step + 1}"]) for step in range(12)
    ]
    graph.node.extend(
        [
            helper.make_node("Equal", ["input_ids", "word"], ["is_word"]),
            helper.make_node("Where", ["is_word", "large", "none"], ["width_of_each"]),
            helper.make_node("ReduceMax", ["width_of_each"], ["width"], keepdims=0),
            helper.make_node("Expand", ["width", "twice"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["matrix_0"], value=zero),
            *products,
            helper.make_node("ReduceSum", ["matrix_12"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["plain_vectors", "nothing"], ["vectors"]),
        ]
    )
    onnx.save(model, path)


@pytest.fixture
def poisoned_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two bundles, of which the active one takes too long for a query with POISON."""
    write = bundles._write_encoder

    def write_slow(path: Path, dims: list[int], seed: int) -> None:
        write(path, dims, seed)
        with_a_slow_word(path, POISON)

    store = make_store(tmp_path / "store", "earlier")
    monkeypatch.setattr(bundles, "_write_encoder", write_slow)
    texts = [text for text in label_texts() if POISON not in text]
    with store.incoming() as folder:
        store.publish(make_bundle(folder, texts, prefix="present"), "present")
    store.activate("present")
    return store


def error_of(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.json()["error"]["code"]


def test_one_caller_cannot_force_a_rollback(poisoned_store: Store) -> None:
    """A client with a query that ends engines could force a rollback by repeating it."""
    # the other requests wait until two engines have been given up and replaced
    settings = {"engine_timeout_seconds": 2, "crashes": 3, "deadline_seconds": PATIENCE}
    with serving(poisoned_store.path, **settings) as service, Load(service, GOOD, clients=2) as load:
        for number in range(2):
            ask = {"queries": ["red shoes", f"{POISON} shoes" + " red" * number], "k": 5}
            assert error_of(service.ask("POST", "/predict", ask)) == (422, "quarantined")
            answered = len(load.replies)
            wait_until(lambda answered=answered: len(load.replies) > answered + 10 or load.errors)
            assert error_of(service.ask("POST", "/predict", ask)) == (422, "quarantined")
        assert service.ask("POST", "/predict", {"queries": ["red shoes"], "k": 5}).status == 200
        found = figures(service)
        assert found["diptych_engine_restarts_total"] >= 4
        assert found["diptych_quarantined_queries_total"] == 2
        assert found['diptych_rejections_total{reason="quarantined"}'] == 2
        assert found['diptych_switches_total{result="fallback"}'] == 0
        assert service.ask("GET", "/readyz").json()["bundle"] == "present"
    assert not load.errors
    assert {reply.status for _, reply in load.replies} == {200}


def test_a_caller_under_its_share_gets_no_429(tmp_path: Path) -> None:
    """A caller that fills the queue would lock out all others, whether the connection or the queue refuses."""
    store = make_store(tmp_path / "store", "words")
    large = json.dumps({"queries": ["red winter"] * 16, "k": 100}).encode()
    limits = {"predict_key": "heavy,light", "max_queries": 16, "max_waiting_queries": 64}
    patient = {
        "deadline_seconds": PATIENCE,
        "engine_timeout_seconds": PATIENCE,
    }  # nothing ends while the engine is stopped
    with serving(store.path, **limits, **patient) as service, ExitStack() as clients:
        (engine,) = service.engines()
        os.kill(engine, signal.SIGSTOP)
        heavy = [clients.enter_context(service.client()) for _ in range(12)]
        for client in heavy:
            client.begin("POST", "/predict", large, X_Api_Key="heavy")
        # those that the queue has no room for are refused; what the engine has been sent does not wait any longer
        wait_until(lambda: figures(service).get('diptych_rejections_total{reason="queue_full"}', 0) >= 3)
        reply = service.ask("POST", "/predict", large, X_Api_Key="heavy", X_Deadline_Ms="500")
        assert error_of(reply) == (429, "overloaded")
        assert 1 <= int(reply.headers["retry-after"]) <= longest_retry()
        light = [clients.enter_context(service.client()) for _ in range(8)]
        before = figures(service)["diptych_unfinished_requests"]
        for client in light:
            client.begin("POST", "/predict", GOOD[0], X_Api_Key="light")
        wait_until(lambda: figures(service)["diptych_unfinished_requests"] >= before + len(light))
        os.kill(engine, signal.SIGCONT)
        assert [client.finish().status for client in light] == [200] * 8
        assert {client.finish().status for client in heavy} == {200, 429}


def with_large_labels(folder: Path, characters: int) -> None:
    """Give a bundle the labels of an exporter without a limit, honestly listed in its manifest."""
    table = pa.ipc.open_file(pa.memory_map(str(folder / LABELS))).read_all()
    table = pa.table({name: table.column(name).combine_chunks() for name in table.column_names})
    table = table.append_column("notes", pa.array(["é" * characters] * table.num_rows))
    assert label_bytes(table).min() > characters
    write_labels(folder / LABELS, table)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][LABELS] = describe_file(folder / LABELS).model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def large_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose labels have 200 kB each."""
    store = Store(tmp_path_factory.mktemp("large") / "store", verify_in_process)
    with store.incoming() as folder:
        make_bundle(folder)
        with_large_labels(folder, 100_000)
        store.publish(folder, "old")
    store.activate("old")
    return store.path


def survives(service: Service, ask: dict[str, Any]) -> Reply:
    engines = service.engines()
    reply = service.ask("POST", "/predict", ask)
    assert service.engines() == engines
    return reply


def test_old_bundles_with_large_labels_end_no_engine(large_labels: Path) -> None:
    """A request of two kilobytes would exceed the frame limit and end the engine, again and again."""
    with serving(large_labels) as service:
        reply = survives(service, {"queries": ["red winter"], "k": 100})  # 20 MB, in many frames
        assert reply.status == 200
        assert len(reply.json()["results"][0]["hits"]) == 100
        for texts, k in ((256, 100), (8, 100), (256, 1), (2, 100)):
            reply = survives(service, {"queries": [f"red winter {number}" for number in range(texts)], "k": k})
            assert error_of(reply) == (422, "answer_too_large")
        assert survives(service, {"queries": ["red winter"], "k": 1}).status == 200
