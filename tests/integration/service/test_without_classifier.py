"""A model without a classifier (DePSL, Query2Bid): no ψ in the checkpoint, no second half in the bundle."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from retrieval import Retriever, open_bundle
from retrieval.errors import BadInput
from retrieval.store.local import Store
from tests.support.bundles import WORDS
from tests.support.command import run
from tests.support.listener import RecordingCallback
from tests.support.service import serving
from tests.support.training.checkpoints import N_LABELS, SETTINGS, export_to_store, write_words
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.evaluation.checkpoint_evaluation import evaluate_checkpoint
from training.recipe.loading import load_recipe
from training.run import train

QUERIES = ["cheap running shoes", "red winter city", *WORDS]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_words(tmp_path_factory.mktemp("dual") / "dataset")


@pytest.fixture(scope="module")
def checkpoint(dataset: Dataset) -> Path:
    recipe = load_recipe("systems/depsl", [*SETTINGS, "batching.pool_size=200"])
    train(dataset, recipe, dataset.folder.parent / "checkpoint", RecordingCallback())
    return dataset.folder.parent / "checkpoint"


@pytest.fixture(scope="module")
def store(checkpoint: Path) -> Store:
    return export_to_store(checkpoint)


@pytest.fixture(scope="module")
def retriever(store: Store) -> Iterator[Retriever]:
    with open_bundle(store.path) as retriever:
        yield retriever


def test_no_file_of_the_run_has_a_row_per_label_for_the_classifier(checkpoint: Path) -> None:
    """If it fails, hundreds of millions of unused rows ψ take memory in training and in the checkpoint."""
    for name in ("model.safetensors", "state.safetensors"):
        assert not [tensor for tensor in load_file(checkpoint / name) if "classifier" in tensor]
    model = load_checkpoint(checkpoint).unified
    assert model.classifier is None
    assert model.classifier_head is None
    assert model.classifier_rows().shape == (N_LABELS, 0)


def test_the_bundle_has_dual_vectors_only_and_answers_as_the_checkpoint(
    retriever: Retriever, checkpoint: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """If it fails, export writes a zero half for every label, or other answers than the checkpoint gives."""
    model = retriever.manifest.model
    assert (model.classifier_dim, model.dim) == (0, 384)
    assert retriever.vectors_LD.shape == (N_LABELS, 384)
    assert run("export", checkpoint, "--store", tmp_path, "--activate", "--vectors", "float32") == 0
    result = evaluate_checkpoint(checkpoint, dataset, "validation").result
    queries = dataset.split("validation")
    with open_bundle(tmp_path) as whole:
        ranking = whole.search_rows(queries.texts, 12)
    answers = [[row for row in rows if row not in (0, 5)][:10] for rows in ranking.rows_QK.tolist()]
    assert np.mean(np.array(answers) == result.rankings["unified"]) > 0.99, "equal but for ties"
    assert not ranking.classifier_QK.any()
    np.testing.assert_allclose(ranking.dual_QK, ranking.scores_QK)


def test_another_weight_than_zero_is_refused(retriever: Retriever) -> None:
    """If it fails, a weight of 1 ranks labels by their row number."""
    assert retriever.search(["red"], 3, weight=0.0) == retriever.search(["red"], 3)
    with pytest.raises(BadInput, match=r"weight is 0.5, but this bundle has no classifier"):
        retriever.search(["red"], 3, weight=0.5)


def test_the_service_answers_and_refuses_in_the_same_way(store: Store, retriever: Retriever) -> None:
    """If it fails, the service fails on such a bundle, or answers a weight that the library refuses."""
    with serving(store.path) as service, service.client() as client:
        assert service.ask("GET", "/about").json()["fixed_weight"] is True
        for query in QUERIES:
            (found,) = client.post("/predict", {"queries": [query], "k": 5}).json()["results"]
            assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in retriever.search([query], 5)[0]]
            assert all(hit["classifier"] == 0 for hit in found["hits"])
        refused = client.post("/predict", {"queries": ["red"], "k": 5, "weight": 0.5})
        assert refused.status == 422
        assert "this bundle has no classifier" in refused.json()["error"]["message"]


def test_renee_begins_with_the_encoder_of_such_a_model(dataset: Dataset, checkpoint: Path, tmp_path: Path) -> None:
    """If it fails, a classifier cannot be trained on an encoder that was trained before it."""
    heads = ["heads.dual_encoder.dim=384", "optimizer.epochs=1"]
    recipe = load_recipe("systems/renee", [*SETTINGS, *heads, f"warm_start={checkpoint}"])
    facts = train(dataset, recipe, tmp_path / "run", RecordingCallback())
    assert facts.classifier_weight == 1.0
    assert load_checkpoint(tmp_path / "run").unified.classifier is not None
