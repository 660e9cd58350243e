"""Examination probabilities: recovery of a known truth, and logs and tables that are refused with one sentence."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.errors import DatasetError
from training.prepare.clicks.examination import (
    MIN_EXAMINATION,
    estimate_examination,
    examination_from_table,
    inverse_examination,
)

Cells = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def simulated(examination_K: NDArray[Any], pairs: int, impressions: int, seed: int = 0) -> Cells:
    """Return cells of a log in which relevant pairs are shown higher, which misleads a click rate per position."""
    random = np.random.default_rng(seed)
    positions = len(examination_K)
    relevance_P = random.beta(1, 9, pairs)
    usual_P = np.argsort(np.argsort(-relevance_P)) * positions // pairs
    share_PK = np.exp(-np.abs(np.arange(positions) - usual_P[:, None]) / 2)
    shown_PK = random.multinomial(impressions, share_PK / share_PK.sum(1, keepdims=True))
    clicks_PK = random.binomial(shown_PK, examination_K * relevance_P[:, None])
    pair_N, index_N = np.nonzero(shown_PK)
    return pair_N, index_N + 1, clicks_PK[pair_N, index_N], shown_PK[pair_N, index_N]


def cells(*rows: tuple[int, int, int, int]) -> Cells:
    """Return cells of (pair, position, clicks, impressions)."""
    pair_N, position_N, clicks_N, impressions_N = np.array(rows).T
    return pair_N, position_N, clicks_N, impressions_N


@pytest.mark.parametrize(("pairs", "impressions"), [(2_000, 1_000), (200_000, 10)], ids=["many views", "few views"])
def test_the_truth_of_a_simulated_log_is_recovered(pairs: int, impressions: int) -> None:
    """If it fails, clicks are weighted by wrong probabilities, for example because good results are shown higher."""
    truth_K = 1 / np.arange(1, 9) ** 0.8
    log = simulated(truth_K, pairs, impressions)
    _, position_N, clicks_N, impressions_N = log
    rate_K = np.bincount(position_N, clicks_N)[1:] / np.bincount(position_N, impressions_N)[1:]
    estimate_K = estimate_examination(*log)
    assert estimate_K[0] == 1.0
    assert np.abs(np.log(estimate_K / truth_K)).max() < 0.06
    assert np.abs(np.log(rate_K / rate_K[0] / truth_K)).max() > 1.0


def test_the_estimate_does_not_depend_on_the_order_or_on_useless_pairs() -> None:
    """If it fails, the same log in other files gives another dataset, or rarely shown pairs distort the estimate."""
    log = simulated(np.array([1.0, 0.5, 0.3]), 500, 50)
    order = np.random.default_rng(1).permutation(len(log[0]))
    shuffled = tuple(array[order] for array in log)
    assert np.allclose(estimate_examination(*shuffled), estimate_examination(*log), rtol=1e-5)  # type: ignore[arg-type]
    one_position, never_clicked = (900, 3, 40, 50), [(901, 1, 0, 10**6), (901, 3, 0, 10**6)]
    useless = cells(one_position, *never_clicked)
    longer = tuple(np.concatenate(both) for both in zip(log, useless, strict=True))
    assert estimate_examination(*longer).tolist() == estimate_examination(*log).tolist()  # type: ignore[arg-type]


def test_a_bot_on_one_pair_has_little_influence() -> None:
    """If it fails, one program that clicks on one result decides the weight of all clicks at its position."""
    truth_K = np.array([1.0, 0.5, 0.3])
    log = simulated(truth_K, 2_000, 100)
    bot = cells((5_000, 1, 2, 10**5), (5_000, 3, 10**5, 10**5))
    longer = tuple(np.concatenate(both) for both in zip(log, bot, strict=True))
    assert estimate_examination(*longer) == pytest.approx(truth_K, rel=0.15)  # type: ignore[arg-type]


def test_positions_linked_only_through_others_are_estimated() -> None:
    """If it fails, positions far from the first get a wrong value, since no pair is shown at both."""
    truth_K = 0.8 ** np.arange(12)
    rows = [(pair, pair + 1 + side, round(1e6 * truth_K[pair + side]), 10**7) for pair in range(11) for side in (0, 1)]
    assert estimate_examination(*cells(*rows)) == pytest.approx(truth_K, rel=1e-4)


def test_positions_without_an_estimate_take_the_one_before() -> None:
    """If it fails, a rare position makes the log unusable, or its clicks count 100 times."""
    log = cells((0, 1, 40, 100), (0, 2, 20, 100), (1, 5, 3, 9), (2, 4, 3, 9), (2, 6, 3, 9))
    assert estimate_examination(*log) == pytest.approx([1.0, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_estimates_are_limited() -> None:
    """If it fails, a position without clicks divides by 0, or a lower position counts less than the first."""
    log = cells((0, 1, 40, 100), (0, 2, 50, 100), (0, 3, 0, 100))
    assert estimate_examination(*log).tolist() == [1.0, 1.0, MIN_EXAMINATION]


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (cells((0, 0, 1, 2), (0, 1, 1, 2)), "lowest position is 0.*Add 1 to the position column"),
        (cells((0, -3, 1, 2)), "lowest position is -3"),
        (cells((0, 1, 0, 0)), "without impressions"),
        (cells((0, 1, 1, 2), (0, 70_000, 1, 2)), "highest position is 70,000"),
        (cells((0, 1, 3, 2)), "3 clicks and 2 impressions at position 1"),
        (cells((0, 1, 1, 2), (1, 2, 1, 2)), "No clicked pair was shown at position 1 and at another"),
        (cells((0, 1, 0, 2), (0, 2, 0, 2)), "No clicked pair was shown at position 1 and at another"),
        (cells((0, 2, 1, 2), (0, 3, 1, 2)), "No clicked pair was shown at position 1 and at another"),
        (cells((0, 1, 0, 2), (0, 2, 1, 2)), "was clicked at position 1"),
    ],
)
def test_logs_that_allow_no_estimate_are_one_sentence(log: Cells, why: str) -> None:
    """If it fails, `prepare` ends with a traceback or weights clicks by a number that the log does not contain."""
    with pytest.raises(DatasetError, match=why):
        estimate_examination(*log)


def test_a_table_becomes_probabilities_relative_to_position_1() -> None:
    """If it fails, weights of clicks depend on the scale or the order of the table."""
    assert examination_from_table({2: 0.4, 1: 0.8, 3: 0.001}).tolist() == [1.0, 0.5, MIN_EXAMINATION]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({}, "is empty"),
        ({1: 1.0, 3: 0.2}, "Position 2 has no examination probability"),
        ({0: 1.0, 1: 0.5}, "Position 0 is not an integer from 1"),
        ({"1": 1.0}, "Position '1' is not an integer"),
        ({1: 1.0, 2: 0.0}, "probability of position 2 is 0.0"),
        ({1: 1.5}, "probability of position 1 is 1.5"),
        ({1: float("nan")}, "probability of position 1 is nan"),
        ({1: True}, "probability of position 1 is True"),
    ],
)
def test_wrong_tables_are_one_sentence(table: dict[Any, Any], why: str) -> None:
    """If it fails, a typing error in a table silently changes the weight of clicks."""
    with pytest.raises(DatasetError, match=why):
        examination_from_table(table)


def test_clicks_count_by_inverse_examination() -> None:
    """If it fails, a position below the table has no weight, or a wrong position has one."""
    assert inverse_examination(np.array([1, 2, 9]), np.array([1.0, 0.5])).tolist() == [1.0, 2.0, 2.0]
    with pytest.raises(DatasetError, match="lowest position is 0"):
        inverse_examination(np.array([0]), np.array([1.0]))
