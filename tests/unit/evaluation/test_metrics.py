"""The metrics against values computed by hand."""

import math

import numpy as np
import pytest

from retrieval.errors import BadInput
from retrieval.metrics import click_ratios, evaluate, propensities, ratios

TOP_QK = np.array([[3, 1, 0], [2, 4, -1]])
TRUTH = [np.array([3, 0]), np.array([4])]
INVERSE_L = np.array([2.0, 1.0, 1.0, 4.0, 3.0])


def test_hand_computed_figures() -> None:
    """If it fails, all reported metrics are wrong."""
    figures = evaluate(TOP_QK, TRUTH, INVERSE_L, ks=(1, 3))
    discount = [1.0, 1 / math.log2(3), 0.5]
    assert figures["P@1"] == pytest.approx(50.0)
    assert figures["P@3"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)
    assert figures["nDCG@1"] == pytest.approx(50.0)
    ideal = discount[0] + discount[1]
    assert figures["nDCG@3"] == pytest.approx(100 * ((discount[0] + discount[2]) / ideal + discount[1]) / 2)
    assert figures["PSP@1"] == pytest.approx(100 * 4 / (4 + 3))
    assert figures["PSP@3"] == pytest.approx(100 * (4 + 2 + 3) / (4 + 2 + 3))
    assert figures["R@1"] == pytest.approx(100 * (0.5 + 0.0) / 2)
    assert figures["R@3"] == pytest.approx(100.0)
    assert figures["C@1"] == pytest.approx(100 * 1 / 3)
    assert figures["C@3"] == pytest.approx(100.0)


def test_psp_is_a_ratio_of_sums_and_takes_the_best_possible_first() -> None:
    """If it fails, PSP@k is averaged per query, or not divided by the best possible sum, unlike in all of XMC."""
    truth = [np.array([0, 1, 2]), np.array([3])]
    figures = evaluate(np.array([[0], [3]]), truth, np.array([1.0, 5.0, 2.0, 10.0]), ks=(1,))
    assert figures["PSP@1"] == pytest.approx(100 * (1 + 10) / (5 + 10))


def test_queries_without_truth_are_not_scored() -> None:
    """If it fails, queries without a true label lower all metrics."""
    top_QK = np.concatenate([TOP_QK, [[0, 1, 2]]])
    truth = [*TRUTH, np.array([], np.int64)]
    assert evaluate(top_QK, truth, INVERSE_L, ks=(1, 3)) == evaluate(TOP_QK, TRUTH, INVERSE_L, ks=(1, 3))


def test_ratios_keep_the_rows_of_the_queries() -> None:
    """If it fails, a subset of the queries is measured on the answers of others."""
    truth = [TRUTH[0], np.array([], np.int64), TRUTH[1]]
    found = ratios(TOP_QK[[0, 0, 1]], truth, INVERSE_L, ks=(3,))
    assert found["R@3"].gain_Q.tolist() == [1, 0, 1]
    assert found["PSP@3"].base_Q.tolist() == [6, 0, 3]
    assert all(ratio.queries == 2 for ratio in found.values())
    last = found["P@3"].within(np.array([False, True, True]))
    assert (last.percent, last.queries) == (pytest.approx(100 / 3), 1)
    assert math.isnan(last.within(np.array([True, True, False])).percent)


def test_a_truth_that_repeats_a_label_counts_it_once() -> None:
    """If it fails, a repeated label raises the best possible gain and lowers the metrics."""
    doubled = [np.array([3, 0, 3]), np.array([4, 4])]
    assert evaluate(TOP_QK, doubled, INVERSE_L) == evaluate(TOP_QK, TRUTH, INVERSE_L)


def test_propensities_follow_the_published_formula() -> None:
    """If it fails, PSP@k cannot be compared with published values."""
    scale = (math.log(1000) - 1) * 2.5**0.55
    expected = [1 + scale * (count + 1.5) ** -0.55 for count in (0, 1, 50)]
    np.testing.assert_allclose(propensities(np.array([0, 1, 50]), 1000), expected)
    assert propensities(np.array([0]), 1000, a=0.5, b=0.4)[0] == pytest.approx(
        1 + (math.log(1000) - 1) * 1.4**0.5 * 0.4**-0.5
    )


@pytest.mark.parametrize(
    ("top", "truth", "said"),
    [
        ([[1, 1]], [[0]], "twice"),
        ([[0]], [[]], "no query"),
        ([[0]], [[0], [1]], "do not match"),
        ([[9]], [[0]], "between 0 and 4"),
        ([[0]], [[-1]], "between 0 and 4"),
    ],
)
def test_impossible_rankings_are_refused(top: list[list[int]], truth: list[list[int]], said: str) -> None:
    """If it fails, an error in the caller gives a plausible metric."""
    with pytest.raises(BadInput, match=said):
        evaluate(np.array(top), [np.array(labels, np.int64) for labels in truth], INVERSE_L, ks=(1, 3))


def test_click_weighted_metrics_by_hand() -> None:
    """If it fails, a click-weighted metric is averaged per query, or not divided by the best possible clicks."""
    top_QK = np.array([[3, 1, 0], [2, 4, -1], [0, 1, 2], [1, 2, 3]])
    truth = [np.array([3, 0, 2]), np.array([4]), np.array([], np.int64), np.array([4, 0])]
    weight_V = np.array([10.0, 70.0, 20.0, 5.0, 1.0, 3.0], np.float32)
    weighted = click_ratios(top_QK, truth, weight_V, 5, ks=(1, 3))
    assert weighted["wP@1"].percent == pytest.approx(100 * 10 / (70 + 5 + 3))
    assert weighted["wP@3"].percent == pytest.approx(100 * (10 + 70 + 5) / (100 + 5 + 4))
    assert weighted["wR@1"].percent == pytest.approx(100 * 10 / (100 + 5 + 4))
    assert weighted["wR@3"].percent == pytest.approx(100 * (10 + 70 + 5) / (100 + 5 + 4))
    assert weighted["wP@1"].base_Q.tolist() == [70, 5, 0, 3]


def test_with_equal_clicks_of_one_label_per_query_click_weighted_precision_is_recall() -> None:
    """If it fails, clicks enter a metric in another way than as the weight of a true label."""
    top_QK, truth = np.array([[3, 1, 0], [2, 4, -1]]), [np.array([0]), np.array([1])]
    weighted, plain = click_ratios(top_QK, truth, np.full(2, 7.0), 5), ratios(top_QK, truth, INVERSE_L)
    for k in (1, 3, 5, 10):
        assert weighted[f"wP@{k}"].percent == weighted[f"wR@{k}"].percent == plain[f"R@{k}"].percent
