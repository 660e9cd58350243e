"""Metrics among the labels with a training positive: rankings and true labels are both restricted.

Shapes: Q queries, K ranks, L labels.
"""

import numpy as np
import pytest

from export.quality import SearchRanker
from retrieval.metrics import KS
from training.data.dataset import Split
from training.data.ragged import Ragged
from training.evaluation.results import EvaluationData, evaluate
from training.evaluation.scoring import ScoreMix

MIX = ScoreMix(0.5, 0.0)
POSITIVES_L = np.array([3, 0, 1, 0, 2])  # labels 1 and 3 are unseen
ORDER_QL = np.array([[1, 0, 3, 2, 4], [3, 1, 4, 0, 2], [1, 3, 0, 2, 4]])  # the best labels of three queries
TRUTH = [[1, 0], [3, 2], [1]]


class FixedRanker:
    """Rank the labels in a fixed order."""

    def rank(self, mixes: list[ScoreMix], allowed_L: np.ndarray | None = None) -> dict[ScoreMix, np.ndarray]:
        allowed_L = np.ones(len(POSITIVES_L), bool) if allowed_L is None else allowed_L
        rows = [[row for row in order if allowed_L[row]] for order in ORDER_QL.tolist()]
        return dict.fromkeys(mixes, np.array(rows))


def data(positives_L: np.ndarray = POSITIVES_L) -> EvaluationData:
    queries = Split.from_lists(["a", "b", "c"], ["a", "b", "c"], Ragged.from_lists(TRUTH), Ragged.empty(3))
    return EvaluationData(queries, positives_L, np.array([1.0, 5.0, 2.0, 5.0, 1.5]))


def test_both_rankings_and_true_labels_are_restricted() -> None:
    """If it fails, an unseen label still takes a place, or still counts as missed."""
    result = evaluate(FixedRanker(), data(), {"unified": MIX})
    assert result.seen is not None
    assert result.metrics["unified"]["P@1"] == pytest.approx(100.0)
    seen = result.seen.metrics["unified"]
    assert seen["P@1"] == pytest.approx(100 / 2), "of two queries with a seen true label, one finds it first"
    assert seen["R@3"] == pytest.approx(100.0)
    assert seen["PSP@1"] == pytest.approx(100 * 1.0 / (1.0 + 2.0)), "the best possible order has seen labels only"
    assert seen["C@1"] == pytest.approx(100 / 2)
    assert set(seen) == set(result.metrics["unified"])


def test_the_metrics_per_query_are_those_of_the_table() -> None:
    """If it fails, intervals are computed from other queries than the metrics."""
    result = evaluate(FixedRanker(), data(), {"unified": MIX})
    assert result.seen is not None
    for key, ratio in result.ratios(["unified"]).items():
        if key.kind == "seen head":
            assert ratio.percent == pytest.approx(result.seen.metrics["unified"][key.metric])
            assert ratio.queries == 2


@pytest.mark.parametrize("positives_L", [np.ones(5, int), np.array([0, 0, 0, 0, 1])])
def test_without_anything_to_restrict_there_is_no_second_result(positives_L: np.ndarray) -> None:
    """If it fails, every table is printed twice, or a split without a seen true label ends in an error."""
    assert evaluate(FixedRanker(), data(positives_L), {"unified": MIX}).seen is None


def test_a_search_that_knows_no_restriction_is_asked_for_more() -> None:
    """If it fails, the seen metrics of a bundle count missing answers as wrong ones."""
    asked = []

    def search(weight: float, k: int) -> np.ndarray:
        asked.append(k)
        return ORDER_QL[:, :k]

    ranker = SearchRanker(search, [np.array([], int), np.array([4]), np.array([], int)], depth=2)
    assert ranker.rank([MIX], POSITIVES_L > 0)[MIX].tolist() == [[0, 2], [0, 2], [0, 2]]
    assert asked == [3, 6]
    assert max(KS) == 10
