"""The export gates on cases worked out by hand."""

import numpy as np
import pytest

from export.gates import recall_at, sample, without_excluded


def test_recall_counts_scores_and_so_accepts_ties() -> None:
    """If it fails, two labels of the same text make an index look worse than it is, or a missed label goes unseen."""
    best_QK = np.array([[0.9, 0.8, 0.7], [0.5, 0.5, 0.5]], np.float32)
    found_QK = np.array([[0.9, 0.7, 0.6], [0.5, 0.5, 0.5]], np.float32)
    assert recall_at(3, found_QK, best_QK) == pytest.approx(5 / 6)
    assert recall_at(1, found_QK, best_QK) == 1.0
    assert recall_at(10, found_QK, best_QK) == pytest.approx(5 / 6)


def test_excluded_labels_do_not_cost_a_place() -> None:
    """If it fails, the bundle's quality is lower than the checkpoint's for a reason that is not the bundle's."""
    rows_QK = np.array([[4, 1, 2, 3], [1, 2, 3, 4]])
    kept_QK = without_excluded(rows_QK, [np.array([1, 4]), np.array([], np.int32)], 2)
    assert kept_QK.tolist() == [[2, 3], [1, 2]]
    assert without_excluded(rows_QK, [np.arange(9), np.arange(9)], 2).tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize(("length", "asked", "given"), [(10, 3, 3), (3, 10, 3), (1, 1, 1), (100, 100, 100)])
def test_a_sample_is_spread_and_never_repeats(length: int, asked: int, given: int) -> None:
    """If it fails, a gate looks at one text many times, or only at the start of a sorted table."""
    import pyarrow as pa

    texts = sample(pa.chunked_array([[str(row) for row in range(length)]]), asked)
    assert len(texts) == len(set(texts)) == given
    assert {texts[0], texts[-1]} == {"0", str(length - 1)} or given == 1
