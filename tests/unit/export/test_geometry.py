"""The split of scores into query and label vectors: scores do not depend on it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export.geometry import CONE_SHRINK, MIN_TRAINED_LABELS, Cone, balance_for, classifier_vectors, find_cone
from export.parity import smallest_cosine
from export.quality import torch_vectors
from retrieval.bundle.facts import ModelFacts
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.token_cache import tokenize_in_memory
from training.evaluation.checkpoint_evaluation import selected_mix
from training.evaluation.encoding import encode_labels, encode_queries

D, C = 6, 5
Change = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def opened(words_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(words_checkpoint)


@pytest.fixture
def with_rows(opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Return the checkpoint with other classifier rows; the first `trained` labels have three positives each."""

    def change(rows_LC: torch.Tensor, trained: int, popularity: float = 0.0) -> Checkpoint:
        monkeypatch.setattr(opened.unified, "classifier_rows", lambda: rows_LC)
        trained_L = np.arange(len(rows_LC)) < trained
        best = opened.facts.best.model_copy(update={"popularity": popularity})
        facts = opened.facts.model_copy(update={"best": best})
        return dataclasses.replace(opened, trained_L=trained_L, positives_L=3 * trained_L, facts=facts)

    return change


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def cone(shrink: float = 0.5) -> Cone:
    return Cone(unit(np.arange(1.0, C + 1)[None])[0], shrink)


@pytest.mark.parametrize("shrink", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8, 1.0])
def test_the_geometry_changes_no_score(weight: float, shrink: float) -> None:
    """If it fails, answers depend on how the index was built and not on the model alone."""
    draw = np.random.default_rng(0)
    dual_QD, dual_LD = (unit(draw.standard_normal((n, D))) for n in (7, 9))
    classifier_QC, classifier_LC = (unit(draw.standard_normal((n, C)) + 1) for n in (7, 9))
    classifier_LC[3] = 0
    facts = ModelFacts(
        encoder="static", dual_dim=D, classifier_dim=C, max_tokens=8, max_characters=80, pad_id=0, unknown_id=1,
        bytes_per_token=4.0, balance=balance_for(weight), cone_shrink=shrink,
    )  # fmt: skip
    label_LD = np.hstack([dual_LD, cone(shrink).apply(classifier_LC)]) * facts.label_scale()
    query_QD = np.hstack([dual_QD, cone(shrink).invert(classifier_QC)]) * facts.query_scale(weight)
    expected_QL = (1 - weight) * dual_QD @ dual_LD.T + weight * classifier_QC @ classifier_LC.T
    np.testing.assert_allclose(query_QD @ label_LD.T, expected_QL, atol=1e-6)


def test_shrinking_undoes_stretching_and_touches_one_direction() -> None:
    """If it fails, parity compares different spaces, or labels lose components outside the cone direction."""
    rows_NC = unit(np.random.default_rng(1).standard_normal((20, C)))
    one = cone(0.25)
    np.testing.assert_allclose(one.apply(one.invert(rows_NC)), rows_NC, atol=1e-6)
    across_NC = rows_NC - np.outer(rows_NC @ one.direction_C, one.direction_C)
    np.testing.assert_allclose(one.apply(across_NC), across_NC, atol=1e-6)
    np.testing.assert_allclose(one.apply(one.direction_C[None])[0], 0.25 * one.direction_C, atol=1e-6)


def test_the_cone_is_that_of_the_trained_rows(with_rows: Change) -> None:
    """If it fails, another direction than the one that hinders the graph is shrunk."""
    draw = torch.Generator().manual_seed(0)
    shared_C = torch.nn.functional.normalize(torch.randn(32, generator=draw), dim=0)
    rows_LC = 3 * (shared_C + 0.1 * torch.randn(300, 32, generator=draw))
    rows_LC[200:] = -rows_LC[200:]  # never trained: these must not count
    for popularity in (0.0, 0.2):
        found = find_cone(with_rows(rows_LC, 200, popularity))
        assert found.shrink == CONE_SHRINK
        along, of_bias = found.direction_C[:-1] @ shared_C.numpy(), found.direction_C[-1]
        assert along**2 + of_bias**2 > 0.99
        assert of_bias == pytest.approx(along * popularity**0.5, rel=0.2)
        assert np.linalg.norm(found.direction_C) == pytest.approx(1.0, abs=1e-6)


def test_a_classifier_half_holds_the_worth_of_popularity(opened: Checkpoint) -> None:
    """If it fails, the index ranks by another score than the one selected on validation."""
    assert selected_mix(opened).popularity > 0
    cpu, texts = torch.device("cpu"), opened.validation.texts
    label_tokens = tokenize_in_memory(opened.labels["text"].to_pylist(), opened.tokenizer)
    queries = encode_queries(opened.unified, tokenize_in_memory(texts, opened.tokenizer), cpu)
    labels = encode_labels(opened.unified, label_tokens, opened.positives_L, cpu, opened.cone_fraction)
    expected_QL = queries.classifier @ labels.classifier.T + selected_mix(opened).popularity * labels.popularity
    half_LC = classifier_vectors(opened, 0, opened.labels.num_rows)
    scores_QL = torch_vectors(opened, texts)[1] @ half_LC.T
    np.testing.assert_allclose(scores_QL[:, opened.trained_L], expected_QL[:, opened.trained_L], atol=1e-5)
    assert not half_LC[opened.positives_L == 0].any()


def test_rows_without_a_shared_direction_are_unchanged(with_rows: Change) -> None:
    """If it fails, a random direction, or NaN, becomes part of every vector."""
    opposite_LC = torch.ones(300, 32) * (1 - 2 * (torch.arange(300) % 2))[:, None]
    for rows_LC, trained in (
        (opposite_LC, 300),
        (torch.ones(300, 32), MIN_TRAINED_LABELS - 1),
        (torch.ones(300, 32), 0),
        (torch.full((300, 32), torch.nan), 300),
    ):
        found = find_cone(with_rows(rows_LC, trained))
        assert found.shrink == 1.0
        halves_NC = np.eye(33, dtype=np.float32)
        assert (found.apply(halves_NC) == halves_NC).all()
        assert (found.invert(halves_NC) == halves_NC).all()


def test_a_chunk_at_a_time_gives_the_mean_of_all(opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, the cone of a large catalogue is computed from only some of its labels."""
    whole_C = classifier_vectors(opened, 0, opened.labels.num_rows).sum(axis=0)
    monkeypatch.setattr("export.geometry.LABELS_PER_CHUNK", 7)
    found = find_cone(opened)
    assert found.shrink == CONE_SHRINK
    np.testing.assert_allclose(found.direction_C, whole_C / np.linalg.norm(whole_C), atol=1e-5)


def test_parity_sees_a_wrong_length() -> None:
    """If it fails, an encoder whose vectors have the right direction but a wrong length passes the parity gate."""
    rows_NC = unit(np.random.default_rng(2).standard_normal((5, C)))
    assert smallest_cosine(rows_NC, rows_NC) == 1.0
    assert smallest_cosine(rows_NC, 1.1 * rows_NC) == pytest.approx(0.995, abs=1e-6)
    for broken in (0.0, 9.0, np.nan, np.inf):
        assert smallest_cosine(rows_NC, np.float32(broken) * rows_NC) <= 0.5
    turned_NC = np.array([[0.6, 0.8]], np.float32)
    assert smallest_cosine(np.array([[1.0, 0.0]], np.float32), turned_NC) == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(("weight", "balance"), [(0.0, 0.2), (0.3, 0.3), (0.5, 0.5), (0.8, 0.5), (1.0, 0.5)])
def test_the_balance_keeps_both_halves_searchable(weight: float, balance: float) -> None:
    """If it fails, an index for weight 0 or 1 links labels by only one of their two vectors."""
    assert balance_for(weight) == balance
