"""Ranking a model's vectors: exact search, excluded labels, the weight between the halves."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training import evaluation
from training.data.ragged import Ragged
from training.evaluation import Vectors

EMPTY = Ragged.from_lists([[] for _ in range(9)])


def unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.fixture
def halves() -> tuple[Vectors, Vectors]:
    generator = torch.Generator().manual_seed(2)
    return (
        Vectors(unit(generator, 9, 6), unit(generator, 9, 4)),
        Vectors(unit(generator, 30, 6), unit(generator, 30, 4)),
    )


def test_rankings_are_those_of_the_weighted_score(
    halves: tuple[Vectors, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, the reported figures would not be the model's; small blocks must change nothing."""
    queries, labels = halves
    monkeypatch.setattr(evaluation, "SCORES_A_BLOCK", 70)
    weights = [0.0, 0.3, 1.0]
    for weight, ranking in evaluation.rank(queries, labels, weights, EMPTY, searched=weights).items():
        scores = (1 - weight) * queries.dual @ labels.dual.T + weight * queries.classifier @ labels.classifier.T
        assert ranking.tolist() == scores.topk(10).indices.tolist()


def test_weights_between_the_searched_ones_rank_what_those_found(
    halves: tuple[Vectors, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, the weight would be chosen on rankings that miss what both halves put first."""
    queries, labels = halves
    monkeypatch.setattr(evaluation, "SHORTLIST", 12)
    exact = evaluation.rank(queries, labels, [0.3, 0.5], EMPTY, searched=[0.3, 0.5])
    listed = evaluation.rank(queries, labels, [0.3, 0.5], EMPTY)
    assert listed[0.5].tolist() == exact[0.5].tolist()
    assert (listed[0.3][:, :3] == exact[0.3][:, :3]).all()


def test_equal_scores_go_by_row_number() -> None:
    """If this failed, labels of the same tokens would be ranked by chance, and differently from the served index."""
    queries = Vectors(F.normalize(torch.ones(1, 4), dim=-1), F.normalize(torch.ones(1, 4), dim=-1))
    labels = Vectors(queries.dual.repeat(300, 1), queries.classifier.repeat(300, 1))
    ranking = evaluation.rank(queries, labels, [0.2], Ragged.from_lists([[0]]), searched=[0.2])[0.2]
    assert (np.diff(ranking[0]) > 0).all()


def test_excluded_labels_never_appear_and_what_is_missing_is_padded(halves: tuple[Vectors, Vectors]) -> None:
    """If this failed, a query's own text would count as a prediction, at some weight or in a full ranking."""
    queries, labels = halves
    few = Vectors(labels.dual[:11], labels.classifier[:11])
    exclude = Ragged.from_lists([[1, 2, 3]] * 9)
    for ranking in evaluation.rank(queries, few, [0.0, 0.4, 1.0], exclude).values():
        assert not np.isin(ranking, [1, 2, 3]).any()
        assert (ranking[:, -2:] == -1).all()
        assert (ranking[:, :-2] >= 0).all()


def test_the_weight_is_the_best_on_validation_and_half_among_equals() -> None:
    """If this failed, the weight between the halves would not be the one that validation prefers."""
    truth = Ragged.from_lists([[0], [1]])
    right, wrong = np.array([[0], [1]]), np.array([[1], [0]])
    inverse = np.ones(2)
    chosen = {0.0: wrong, 0.4: right, 0.5: right, 1.0: wrong}
    assert evaluation.choose_weight(chosen, truth, inverse, ["P@1"]) == (0.5, 100.0)
    assert evaluation.choose_weight({0.0: right, 0.5: wrong}, truth, inverse, ["P@1"])[0] == 0.0


def test_scores_are_those_that_the_ranking_was_made_by(halves: tuple[Vectors, Vectors]) -> None:
    """If this failed, an answer would be shown with another label's score, or a missing one with a real score."""
    queries, labels = halves
    ranking = evaluation.rank(queries, labels, [0.3], EMPTY, searched=[0.3])[0.3]
    expected = (0.7 * queries.dual @ labels.dual.T + 0.3 * queries.classifier @ labels.classifier.T).numpy()
    found = evaluation.scores(queries, labels, ranking, 0.3)
    np.testing.assert_allclose(found, np.take_along_axis(expected, ranking, axis=1), atol=1e-6)
    ranking[:, -1] = -1
    assert np.isneginf(evaluation.scores(queries, labels, ranking, 0.3)[:, -1]).all()
