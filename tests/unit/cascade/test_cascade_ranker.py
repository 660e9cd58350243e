"""Ranking and shortlist recall of a cascade, on a tree by hand."""

import numpy as np
import pytest

from retrieval.search.cascade_index import CascadeIndex
from training.data.ragged import Ragged
from training.evaluation.cascade.ranker import CASCADE_MIX, CascadeRanker, shortlist_recall

PARENTS = [np.array([0, 0, 1, 1], np.int32), np.array([0, 0, 1, 1, 2, 2, 3, 3], np.int32)]
# One query with features of width 1, so that a row's first number is its logit.
ROWS = [[2.0, -2.0], [1.0, 3.0, 0.0, 0.5], [4.0, 0.0, 1.0, 2.0, 9.0, 8.0, 7.0, 6.0]]


def ranker(shortlist: tuple[int, int], exclude: list[int] | None = None) -> CascadeRanker:
    rows = [np.array([[logit, 0.0] for logit in level], np.float32) for level in ROWS]
    index = CascadeIndex.build(rows, PARENTS, shortlist)
    return CascadeRanker(index, np.array([[1.0, 1.0] * 3], np.float32), Ragged.from_lists([exclude or []]))


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def test_a_score_is_the_labels_times_its_clusters() -> None:
    """If it fails, evaluation ranks by other scores than the paper."""
    whole = ranker((2, 4))
    scores = {label: sigmoid(ROWS[2][label]) * sigmoid(ROWS[1][label // 2]) for label in range(8)}
    expected = sorted(scores, key=lambda label: -scores[label])
    row_QK = whole.rank([CASCADE_MIX])[CASCADE_MIX]
    assert row_QK.tolist() == [[*expected, -1, -1]]
    assert whole.scores(row_QK, CASCADE_MIX)[0, :8] == pytest.approx([scores[label] for label in expected])
    assert (whole.scores(row_QK, CASCADE_MIX)[0, 8:] == -np.inf).all()


def test_excluded_labels_leave_their_ranks_to_others() -> None:
    """If it fails, a query with exclusions has fewer answers than others."""
    row_QK = ranker((2, 4), exclude=[3, 4]).rank([CASCADE_MIX])[CASCADE_MIX]
    assert set(row_QK[0].tolist()) == {0, 1, 2, 5, 6, 7, -1}
    allowed_L = np.arange(8) < 2
    assert ranker((2, 4)).rank([CASCADE_MIX], allowed_L)[CASCADE_MIX][0].tolist() == [0, 1, *[-1] * 8]


@pytest.mark.parametrize(
    ("shortlist", "true", "recalls"),
    [
        ((1, 1), [2, 3], [100, 100, 100]),  # the cluster 1, below 0
        ((1, 1), [2, 4], [50, 50, 50]),
        ((1, 2), [0, 2, 4], [50, 200 / 3, 200 / 3]),
        ((2, 1), [0, 2, 3], [100, 50, 200 / 3]),  # three labels, of which two are below the kept cluster
        ((2, 4), [0, 7], [100, 100, 100]),
    ],
)
def test_shortlist_recall_by_definition(shortlist: tuple[int, int], true: list[int], recalls: list[float]) -> None:
    """If it fails, the page shows another share of true nodes than the shortlists keep."""
    assert shortlist_recall(ranker(shortlist), Ragged.from_lists([true])) == pytest.approx(recalls)
