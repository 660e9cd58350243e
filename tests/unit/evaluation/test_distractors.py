"""Distractors: copies of trained labels that count as untrained and are never correct, while κ is chosen.

Shapes: Q queries, L labels, X distractors, D width of the dual vectors.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.data.dataset import Split
from training.data.ragged import Ragged
from training.evaluation.imputation import NEIGHBOURS, impute
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix
from training.evaluation.selection import distractors
from training.evaluation.selection.distractors import choose_originals, distractor_vectors, hidden_distractors
from training.evaluation.selection.select import ListRanker, choose_cone_fraction
from training.evaluation.selection.shortlists import list_labels

LABELS, UNTRAINED = 60, 6  # the last six are untrained
TRAINED_L = np.arange(LABELS) < LABELS - UNTRAINED


@pytest.fixture
def labels() -> LabelVectors:
    """Labels around a circle, imputed with κ = 1; trained classifier rows have a common direction in addition."""
    angle_L = 6.2 * torch.rand(LABELS, generator=torch.Generator().manual_seed(0))
    dual_LD = torch.stack([angle_L.cos(), angle_L.sin(), torch.zeros(LABELS)], dim=1)
    rows_LC = dual_LD - torch.tensor([0.0, 0.0, 2.0])
    rows_LC[~torch.from_numpy(TRAINED_L)] = 0
    imputation = impute(dual_LD.numpy(), rows_LC, TRAINED_L)
    return LabelVectors(dual_LD, F.normalize(rows_LC, dim=1), torch.ones(LABELS), imputation).with_imputation(1.0)


def data(truth: list[list[int]], exclude: list[list[int]] | None = None) -> EvaluationData:
    names = [str(row) for row in range(len(truth))]
    excluded = Ragged.from_lists(exclude or [[]] * len(truth))
    queries = Split.from_lists(names, names, Ragged.from_lists(truth), excluded)
    return EvaluationData(queries, TRAINED_L.astype(np.int64), np.ones(LABELS))


def test_untrained_labels_that_are_never_correct_reduce_the_number(labels: LabelVectors) -> None:
    """If it fails, a complete label table gets as many distractors as one of correct labels only."""
    correct = data([[LABELS - 1], [LABELS - 2, 0]])
    original_X = choose_originals(labels, correct, 0.5, seed=0)
    assert len(original_X) == 27 - 4, "half of 54 trained labels; four of six untrained labels are never correct"
    assert TRAINED_L[original_X].all()
    assert len(np.unique(original_X)) == len(original_X)
    assert choose_originals(labels, correct, 0.5, seed=0).tolist() == original_X.tolist()
    assert not len(choose_originals(labels, correct, 4 / 54, seed=0))


def test_a_distractor_looks_like_an_untrained_label_at_its_original(labels: LabelVectors) -> None:
    """If it fails, κ is chosen among labels that no untrained label resembles, such as exact copies of trained rows."""
    original_X = np.array([3, 10])
    copies = distractor_vectors(labels, original_X)
    assert torch.equal(copies.dual, labels.dual[original_X])
    assert copies.popularity.tolist() == [0.0, 0.0]
    for copy, original in enumerate(original_X):
        nearest = np.argsort(-(labels.dual @ labels.dual[original]).numpy(), kind="stable")
        others = [row for row in nearest if TRAINED_L[row] and row != original][:NEIGHBOURS]
        torch.testing.assert_close(copies.classifier[copy], labels.classifier[others].mean(dim=0))


def test_a_distractor_is_hidden_from_the_queries_of_its_original(labels: LabelVectors) -> None:
    """If it fails, a correct answer's copy counts as a wrong answer."""
    hidden = hidden_distractors(data([[3], [10, 4], [5]], [[], [], [3]]), np.array([3, 10]))
    assert [hidden[row].tolist() for row in range(3)] == [[0], [1], [0]]


def test_only_copies_of_listed_labels_are_drawn_and_no_more_than_can_be_compared(
    labels: LabelVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a validation of a million labels searches the neighbours of labels that no query is near."""
    correct, listed_L = data([[0]]), np.arange(LABELS) % 2 == 0
    everything = choose_originals(labels, correct, 0.9, seed=0)
    listed = choose_originals(labels, correct, 0.9, 0, listed_L)
    assert listed.tolist() == [row for row in everything if listed_L[row]]
    monkeypatch.setattr(distractors, "MAX_PAIRS", 5 * int(TRAINED_L.sum()))
    few = choose_originals(labels, correct, 0.9, 0, listed_L)
    assert len(few) == 5
    assert set(few) <= set(listed)


def test_kappa_is_larger_if_untrained_labels_are_rarely_correct(labels: LabelVectors) -> None:
    """If it fails, κ is still chosen as if most untrained labels were correct."""
    angle_Q = torch.linspace(0, 6.2, 40)
    vectors_QD = torch.stack([angle_Q.cos(), angle_Q.sin(), torch.zeros(40)], dim=1)
    queries = QueryVectors(vectors_QD, F.normalize(vectors_QD + torch.tensor([0.0, 0.0, 2.0]), dim=1))
    nearest_Q = (vectors_QD @ labels.dual.T).argsort(dim=1, descending=True).numpy()
    untrained_Q = [next(row for row in nearest if not TRAINED_L[row]) for nearest in nearest_Q]
    correct = data([[int(nearest[0]), int(row)] for nearest, row in zip(nearest_Q, untrained_Q, strict=True)])
    mix = ScoreMix(0.5, 0.0)

    lists = list_labels(queries, labels, correct.queries.exclude, [mix])

    def chosen(original_X: np.ndarray) -> float:
        ranker = ListRanker(lists, 0.5)
        return choose_cone_fraction(ranker, queries, labels, mix, correct, ("P@1", "P@5"), original_X)[0]

    assert chosen(np.zeros(0, np.int64)) == 0.25
    assert chosen(np.flatnonzero(TRAINED_L)) == 1.0
