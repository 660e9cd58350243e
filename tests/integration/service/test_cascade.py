"""A cascade (CascadeXML) from its checkpoint to HTTP: export, search with every option, comparison, and the service."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval import Retriever, open_bundle
from retrieval.errors import BadInput
from retrieval.offline.comparison import compare_bundles
from retrieval.search.cascade_index import CascadeIndex
from retrieval.store.local import Store
from tests.support.bundles import WORDS, make_bundle
from tests.support.command import run
from tests.support.service import serving
from tests.support.training.cascades import make_cascade_checkpoint
from tests.support.training.checkpoints import export_to_store
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.data.token_cache import tokenize_in_memory
from training.evaluation.cascade.ranker import encode_cascade_queries
from training.evaluation.checkpoint_evaluation import evaluate_checkpoint
from training.model.cascade import CascadeModel

QUERIES = ["cheap running shoes", "red winter city", *WORDS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cascade_checkpoint(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def store(checkpoint: Path) -> Store:
    return export_to_store(checkpoint)


@pytest.fixture(scope="module")
def retriever(store: Store) -> Iterator[Retriever]:
    with open_bundle(store.path) as retriever:
        yield retriever


def test_the_bundle_answers_as_the_checkpoint(retriever: Retriever, checkpoint: Path) -> None:
    """If it fails, ONNX encoder, rows, tree or shortlists of the bundle are not those of the checkpoint."""
    opened = load_checkpoint(checkpoint)
    assert isinstance(opened.model, CascadeModel)
    tokens = tokenize_in_memory(QUERIES, opened.tokenizer)
    vectors_QD = encode_cascade_queries(opened.model, tokens, torch.device("cpu"))
    np.testing.assert_allclose(np.concatenate(retriever.encode(QUERIES), axis=1), vectors_QD, atol=1e-4)
    index = CascadeIndex.build(opened.model.level_rows(), opened.model.parents, opened.model.shortlist)
    rows_QK, scores_QK = index.rank(vectors_QD, 10)
    ranking = retriever.search_rows(QUERIES, 10)
    assert (ranking.rows_QK == rows_QK).mean() > 0.99, "equal but for ties"
    np.testing.assert_allclose(ranking.scores_QK, scores_QK, atol=1e-4)
    np.testing.assert_array_equal(ranking.classifier_QK, ranking.scores_QK)
    assert not ranking.dual_QK.any()
    dataset = Dataset.open(checkpoint.parent / "dataset")
    result = evaluate_checkpoint(checkpoint, dataset, "validation").result
    answers = retriever.search_rows(dataset.split("validation").texts, 12).rows_QK.tolist()
    without_excluded = [[row for row in rows if row not in (0, 5)][:10] for rows in answers]
    assert np.mean(np.array(without_excluded) == result.rankings["unified"]) > 0.99


def test_the_manifest_records_levels_recalls_and_quality(retriever: Retriever) -> None:
    """If it fails, a cascade is published without the measurements of its gates."""
    manifest = retriever.manifest
    assert manifest.format_version == 5
    assert not [name for name in manifest.files if name.startswith(("label_encoder", "index"))]
    cascade = manifest.cascade
    assert cascade is not None
    assert [level.nodes for level in cascade.levels] == [4, 16, 300]
    assert all(0 < (level.shortlist_recall or 0) <= 1 for level in cascade.levels)
    assert cascade.checkpoint_shortlist == (2, 6)
    assert cascade.exact_is_worse or cascade.recall_at_10 >= cascade.recall_target
    assert manifest.parity.query_cosine > 0.9999
    assert manifest.quality is not None
    assert manifest.quality.bundle["P@5"] == pytest.approx(manifest.quality.checkpoint["P@5"], abs=0.5)
    assert retriever.check_golden().passed


def test_filters_paused_labels_and_min_score_apply(store: Store) -> None:
    """If it fails, a cascade ignores a filter, returns a paused label, or has fewer than k results."""
    with open_bundle(store.path, paused=()) as retriever:
        best = retriever.search(QUERIES, 1)
        ids = {hits[0].id for hits in best}
        assert retriever.pause(ids) == []
        for exact in (False, True):
            hits = retriever.search(QUERIES, 290, exact=exact)
            assert all(len(one) == 290 for one in hits)
            assert not ids & {hit.id for one in hits for hit in one}
        assert [len(one) for one in retriever.search(QUERIES, 5, filter={"market": ["CA"]})] == [0] * len(QUERIES)
        retriever.pause([])
        floor = best[0][0].score
        assert all(hit.score >= floor for one in retriever.search(QUERIES, 10, min_score=floor) for hit in one)
        exact_best = [hits[0].score for hits in retriever.search(QUERIES, 1, exact=True)]
        assert all(score >= hits[0].score for score, hits in zip(exact_best, best, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.5}, "weight is 0.5, but this bundle has no dual encoder; leave it out, or set it to 1"),
        ({"weight": 0.0}, "weight is 0, but this bundle has no dual encoder"),
        ({"memory_weight": 0.3}, "memory_weight is 0.3, but the bundle has no query memory"),
    ],
)
def test_options_without_meaning_are_refused(retriever: Retriever, options: dict[str, float], message: str) -> None:
    """If it fails, a weight changes nothing without an error, or ranks labels by their row."""
    neutral = retriever.search(["red"], 3, weight=1.0, memory_weight=0.0)
    assert neutral == retriever.search(["red"], 3)
    with pytest.raises(BadInput, match=message):
        retriever.search(["red"], 3, **options)  # type: ignore[arg-type]


def test_commands_and_comparison_work(
    store: Store, retriever: Retriever, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, `search`, `predict` or `bundles diff` fail for a cascade, or give other answers."""
    expected = [[hit.id for hit in hits] for hits in retriever.search(QUERIES, 4)]
    assert run("search", store.path, QUERIES[0], "-k", "4") == 0
    assert "classifier" in capsys.readouterr().out
    (tmp_path / "queries.csv").write_text("query\n" + "\n".join(QUERIES) + "\n")
    output = tmp_path / "found.jsonl"
    command = ["predict", "--bundle", store.path, "--input", tmp_path / "queries.csv", "--output", output]
    assert run(*command, "-k", "4") == 0
    matches = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert matches == [label for labels in expected for label in labels]
    with open_bundle(make_bundle(tmp_path / "vectors")) as other:
        assert compare_bundles(retriever, other, QUERIES, None).overlap == 0
        assert compare_bundles(retriever, retriever, QUERIES, None).same == 1
    assert run("bundles", "verify", store.path, retriever.name) == 0
    assert run("bundles", "show", store.path, retriever.name) == 0
    assert '"shortlist_recall"' in capsys.readouterr().out


def test_the_service_answers_and_refuses_in_the_same_way(store: Store, retriever: Retriever) -> None:
    """If it fails, the service fails on a cascade, or gives other answers than the library."""
    with serving(store.path) as service, service.client() as client:
        assert service.ask("GET", "/about").json()["fixed_weight"] is True
        for query in QUERIES:
            (found,) = client.post("/predict", {"queries": [query], "k": 5}).json()["results"]
            (hits,) = retriever.search([query], 5)
            assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in hits]
            assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)
        filtered = client.post("/predict", {"queries": ["red"], "k": 100, "filter": {"market": ["US"]}}).json()
        assert len(filtered["results"][0]["hits"]) == 100
        refused = client.post("/predict", {"queries": ["red"], "k": 5, "weight": 0.5})
        assert refused.status == 422
        assert "this bundle has no dual encoder" in refused.json()["error"]["message"]
