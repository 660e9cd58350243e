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
    rankings = evaluation.rank(queries, labels, [0.0, 0.3, 1.0], EMPTY, depth=5)
    for weight, ranking in rankings.items():
        scores = (1 - weight) * queries.dual @ labels.dual.T + weight * queries.classifier @ labels.classifier.T
        assert ranking.tolist() == scores.topk(5).indices.tolist()


def test_excluded_labels_never_appear_and_what_is_missing_is_padded(halves: tuple[Vectors, Vectors]) -> None:
    """If this failed, a query's own text would count as a prediction, at some weight or in a full ranking."""
    queries, labels = halves
    exclude = Ragged.from_lists([[1, 2, 3]] * 9)
    for ranking in evaluation.rank(queries, labels, [0.0, 0.5, 1.0], exclude, depth=30).values():
        assert not np.isin(ranking, [1, 2, 3]).any()
        assert (ranking[:, -3:] == -1).all()
        assert (ranking[:, :-3] >= 0).all()


def test_the_weight_is_the_best_on_validation_and_half_among_equals() -> None:
    """If this failed, the weight between the halves would not be the one that validation prefers."""
    truth = Ragged.from_lists([[0], [1]])
    right, wrong = np.array([[0], [1]]), np.array([[1], [0]])
    inverse = np.ones(2)
    chosen = {0.0: wrong, 0.4: right, 0.5: right, 1.0: wrong}
    assert evaluation.choose_weight(chosen, truth, inverse, ["P@1"]) == (0.5, 100.0)
    assert evaluation.choose_weight({0.0: right, 0.5: wrong}, truth, inverse, ["P@1"])[0] == 0.0


def test_gaps_are_differences_of_precision_in_points() -> None:
    """If this failed, the interval beside a gap would belong to something else."""
    truth = Ragged.from_lists([[0]] * 100)
    right, wrong = np.zeros((100, 1), np.int64), np.ones((100, 1), np.int64)
    mixed = np.where(np.arange(100)[:, None] < 50, right, wrong)
    found = evaluation.gaps({0.0: mixed, 0.5: right, 1.0: wrong}, 0.5, truth, 1)
    assert found["classifier"][0] == pytest.approx(100)
    mean, low, high = found["dual_encoder"]
    assert mean == pytest.approx(50)
    assert low < 50 < high
    assert high - low == pytest.approx(2 * 1.96 * 100 * 0.5 / 100**0.5, rel=0.02)
