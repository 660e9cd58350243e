"""Real queries through torch, ONNX with exact search, and the index: all give the same answers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.build import export
from export.job import ExportSettings
from retrieval import Retriever, open_bundle
from retrieval.open import open_store
from retrieval.quantized_vectors import QuantizedVectors, quantize
from retrieval.search.indexes import ExactIndex
from tests.support.shared import make_once
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.dataset import Dataset
from training.data.ragged import Ragged
from training.data.split import Split
from training.data.token_cache import tokenize_in_memory
from training.evaluation.checkpoint_evaluation import checkpoint_ranker, selected_mix
from training.evaluation.encoding import encode_labels, encode_queries

QUERIES = 500
EQUAL = 1e-4
WEIGHTS = [None, 0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def retriever(store: Path) -> Retriever:
    return open_bundle(store)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    """A bundle of the same checkpoint with float32 vectors, whose scores are those of the model."""

    def make(folder: Path) -> None:
        settings = ExportSettings(vectors="float32", index="exact")
        store = open_store(folder)
        store.activate(export(checkpoint, store, settings=settings).name)

    return open_bundle(make_once(tmp_path_factory, "store-float32", make))


@pytest.fixture(scope="module")
def queries(dataset_folder: Path) -> list[str]:
    return Dataset.open(dataset_folder).split("test").texts[:QUERIES]


@pytest.fixture(scope="module")
def torch_scores(opened: Checkpoint, queries: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Compute cosines [Q, L] of the dual encoder and scores [Q, L] of the classifier with the model itself."""
    cpu = torch.device("cpu")
    query_vectors = encode_queries(opened.unified, tokenize_in_memory(queries, opened.tokenizer), cpu)
    texts = opened.labels["text"].to_pylist()
    label_tokens = tokenize_in_memory(texts, opened.tokenizer)
    labels = encode_labels(opened.unified, label_tokens, opened.positives_L, cpu, opened.cone_fraction)
    assert selected_mix(opened).popularity > 0, "the popularity bonus is 0, so it is not tested"
    dual_QL, classifier_QL = query_vectors.dual @ labels.dual.T, query_vectors.classifier @ labels.classifier.T
    classifier_only = selected_mix(opened)._replace(weight=1.0)
    return dual_QL.numpy(), classifier_only.combine(dual_QL, classifier_QL, labels.popularity).numpy()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_torch_and_onnx_agree_on_the_ten_best(
    whole: Retriever, opened: Checkpoint, queries: list[str], torch_scores: tuple[np.ndarray, np.ndarray],
    weight: float | None,
) -> None:  # fmt: skip
    """If it fails, the bundle answers differently from the model that was trained and measured."""
    at = opened.classifier_weight if weight is None else weight
    scores_QL = (1 - at) * torch_scores[0] + at * torch_scores[1]
    ranking = whole.search_rows(queries, 10, weight=weight, exact=True, memory_weight=0.0)
    best_QK = -np.partition(-scores_QL, 9, axis=1)[:, :10]
    best_QK.sort(axis=1)
    # Each label found must have, by torch, the score that belongs to its place: only equal scores may change places.
    found_QK = np.take_along_axis(scores_QL, ranking.rows_QK, 1)
    np.testing.assert_allclose(found_QK, best_QK[:, ::-1], atol=EQUAL)
    np.testing.assert_allclose(ranking.scores_QK, found_QK, atol=EQUAL)
    for share, share_QK, scores in ((1 - at, ranking.dual_QK, torch_scores[0]),
                                    (at, ranking.classifier_QK, torch_scores[1])):  # fmt: skip
        np.testing.assert_allclose(share_QK, share * np.take_along_axis(scores, ranking.rows_QK, 1), atol=EQUAL)


@pytest.mark.parametrize("gamma", [None, 0.05, 1.0])
def test_torch_and_onnx_agree_with_votes(
    whole: Retriever, opened: Checkpoint, queries: list[str], gamma: float | None
) -> None:
    """If it fails, the bundle adds other votes than those that validation selected and measured."""
    mix = selected_mix(opened)
    assert mix.memory.weight > 0, "the memory's weight is 0, so it is not tested"
    mix = mix._replace(memory=mix.memory._replace(weight=mix.memory.weight if gamma is None else gamma))
    split = Split.from_lists(queries, queries, Ragged.empty(len(queries)), Ragged.empty(len(queries)))
    ranker = checkpoint_ranker(opened, split, torch.device("cpu"))
    row_QK = ranker.rank([mix])[mix]
    ranking = whole.search_rows(queries, 10, memory_weight=gamma, exact=True)
    agreeing = np.isclose(ranking.scores_QK, ranker.scores(row_QK, mix), atol=EQUAL)
    assert agreeing.mean() > 0.999  # a query whose last neighbours are equally near may have another one
    assert (ranking.rows_QK == row_QK).mean() > 0.99
    assert (ranking.memory_QK > 0).any()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_index_finds_what_exact_search_finds(
    retriever: Retriever, queries: list[str], weight: float | None
) -> None:
    """If it fails, recall on queries that export did not use is lower than the manifest says."""
    exact = retriever.search_rows(queries, 10, weight=weight, exact=True, memory_weight=0.0)
    found = retriever.search_rows(queries, 10, weight=weight, memory_weight=0.0)
    recall = (found.scores_QK >= exact.scores_QK[:, -1:] - 1e-6).mean()
    assert recall >= 0.99
    same_QK = found.rows_QK == exact.rows_QK
    np.testing.assert_allclose(found.scores_QK[same_QK], exact.scores_QK[same_QK], atol=1e-6)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_int8_changes_scores_by_little(whole: Retriever, queries: list[str], weight: float | None) -> None:
    """If it fails, a bundle in int8 answers differently from one whose vectors are not rounded."""
    model, vectors_LD = whole.manifest.model, whole.vectors_LD[:]
    rounded_LD = QuantizedVectors(*quantize(vectors_LD, model.dual_dim), model.dual_dim)
    at = whole.manifest.classifier_weight if weight is None else weight
    query_QD = np.concatenate(whole.encode(queries), axis=1) * model.query_scale(at)
    rounded, exact = (ExactIndex(vectors).search(query_QD, 10) for vectors in (rounded_LD, vectors_LD))
    np.testing.assert_allclose(rounded[1], exact[1], atol=0.01)
    found = [len(set(one) & set(other)) for one, other in zip(rounded[0], exact[0], strict=True)]
    assert np.mean(found) >= 9.5


def test_a_copy_gives_the_golden_answers(retriever: Retriever) -> None:
    """If it fails, the bundle does not answer as it did when it was built."""
    report = retriever.check_golden()
    assert report.passed
    assert report.queries >= 50
