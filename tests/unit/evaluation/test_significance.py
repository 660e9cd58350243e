"""Bootstrap intervals and permutation tests, against brute force over all draws and all swaps."""

from itertools import product

import numpy as np
import pytest

from retrieval.errors import BadInput
from retrieval.metrics import FloatArray, Ratio, evaluate, ratios
from training.evaluation.significance import Bootstrap, compare, permutation_test

SEED = 3


def some_ranking(seed: int, n_queries: int = 30, n_labels: int = 12) -> tuple[np.ndarray, list[np.ndarray], FloatArray]:
    draw = np.random.default_rng(seed)
    ranking_QK = np.stack([draw.permutation(n_labels)[:5] for _ in range(n_queries)])
    truth = [draw.permutation(n_labels)[: draw.integers(1, 5)] for _ in range(n_queries)]
    return ranking_QK, truth, draw.uniform(1, 20, n_labels)


def test_intervals_are_those_of_evaluating_every_resample_anew() -> None:
    """If this failed, PSP's interval would keep the denominator of the whole, which is narrower than the truth."""
    ranking_QK, truth, inverse_L = some_ranking(0)
    named = ratios(ranking_QK, truth, inverse_L, ks=(1, 5))
    drawn = Bootstrap(named, 400, SEED)
    rows = np.random.default_rng(SEED).integers(0, len(truth), (400, len(truth)))
    anew = [evaluate(ranking_QK[at], [truth[row] for row in at], inverse_L, ks=(1, 5)) for at in rows]
    for name in named:
        estimate = drawn.estimate(name)
        low, high = np.percentile([figures[name] for figures in anew], [2.5, 97.5])
        assert (estimate.low, estimate.high) == pytest.approx((low, high)), name
        assert estimate.value == pytest.approx(evaluate(ranking_QK, truth, inverse_L, ks=(1, 5))[name])


def test_a_difference_is_paired() -> None:
    """If this failed, two models that differ on few queries would never be called different."""
    base_Q = np.ones(200)
    hard_Q = np.random.default_rng(0).random(200).round()
    drawn = Bootstrap({"a": Ratio(hard_Q + 0.1, base_Q), "b": Ratio(hard_Q, base_Q)}, 500, SEED)
    difference = drawn.difference("a", "b")
    assert (difference.value, difference.low, difference.high) == pytest.approx((10, 10, 10))
    alone = drawn.estimate("a")
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 10


def test_a_seed_fixes_the_intervals_and_small_blocks_keep_their_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the same command would print other intervals, or resample less often than it says."""
    named = ratios(*some_ranking(1))
    first = Bootstrap(named, 1_000, SEED).estimate("PSP@5")
    assert first == Bootstrap(named, 1_000, SEED).estimate("PSP@5")
    assert first != Bootstrap(named, 1_000, SEED + 1).estimate("PSP@5")
    monkeypatch.setattr("training.evaluation.significance.VALUES_PER_BLOCK", 100)
    blocked = Bootstrap(named, 1_000, SEED).estimate("PSP@5")
    assert (blocked.low, blocked.high) == pytest.approx((first.low, first.high), abs=3)
    assert permutation_test([named["P@1"]], [named["P@1"]], 999, SEED)[0].tolist() == [1.0]


def test_one_query_has_no_interval_and_two_have_one_despite_empty_draws() -> None:
    """If this failed, a rare query length would show a metric without uncertainty, or NaN."""
    base_Q = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    gain_Q = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    first_Q = np.arange(6) == 0
    drawn = Bootstrap({"two": Ratio(gain_Q, base_Q), "one": Ratio(gain_Q * first_Q, base_Q * first_Q)}, 300, SEED)
    two, one = drawn.estimate("two"), drawn.estimate("one")
    assert (two.value, two.low, two.high) == pytest.approx((50, 0, 100))
    assert (one.value, one.low, one.high) == (100.0, None, None)


def enumerated(difference_QM: FloatArray) -> tuple[FloatArray, FloatArray]:
    """p-values over all 2^Q tosses, by the definition of the test and of Westfall and Young's step-down."""
    spread_M = np.sqrt((difference_QM**2).sum(axis=0))
    observed_M = np.abs(difference_QM.sum(axis=0)) / spread_M
    tossed = [
        np.abs((np.array(signs)[:, None] * difference_QM).sum(axis=0)) / spread_M
        for signs in product([-1, 1], repeat=len(difference_QM))
    ]
    plain_M = np.mean([of >= observed_M - 1e-9 for of in tossed], axis=0)
    order = np.argsort(-observed_M)
    corrected_M, before = np.empty(len(order)), 0.0
    for place, at in enumerate(order):
        rest = order[place:]
        before = max(before, float(np.mean([of[rest].max() >= observed_M[at] - 1e-9 for of in tossed])))
        corrected_M[at] = before
    return plain_M, corrected_M


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_p_values_are_those_of_every_toss(seed: int) -> None:
    """If this failed, a checkpoint would be called better too often or too rarely."""
    draw = np.random.default_rng(seed)
    difference_QM = draw.integers(-2, 4, (9, 4)) / 5
    base_Q = np.ones(9)
    first = [Ratio(difference_QM[:, m] + 1, base_Q) for m in range(4)]
    second = [Ratio(base_Q, base_Q)] * 4
    p_M, corrected_M = permutation_test(first, second, 40_000, SEED)
    expected_p_M, expected_corrected_M = enumerated(difference_QM)
    np.testing.assert_allclose(p_M, expected_p_M, atol=0.01)
    np.testing.assert_allclose(corrected_M, expected_corrected_M, atol=0.01)
    assert (corrected_M >= p_M).all()


def test_models_that_are_alike_are_rarely_called_different() -> None:
    """If this failed, a comparison of many parts would find a winner by chance more often than one time in twenty."""
    draw, base_Q, wrong = np.random.default_rng(4), np.ones(40), 0
    for trial in range(100):
        gains = draw.integers(0, 2, (2, 40, 20)).astype(float)
        sides = [{m: Ratio(of[:, m], base_Q) for m in range(20)} for of in gains]
        wrong += any(contrast.better for contrast in compare(*sides, resamples=300, seed=trial))
    assert wrong <= 11  # 5 expected; 12 or more has a chance of one in 200


def test_the_better_side_is_named_and_identical_models_are_not() -> None:
    """If this failed, the verdict would point at the wrong checkpoint."""
    base_Q = np.ones(50)
    strong = {"part": Ratio(base_Q, base_Q), "same": Ratio(base_Q / 2, base_Q)}
    weak = {"part": Ratio(base_Q / 4, base_Q), "same": Ratio(base_Q / 2, base_Q)}
    ahead, alike = compare(strong, weak, 500, SEED)
    assert (ahead.key, ahead.better, ahead.difference.value, ahead.queries) == ("part", "first", 75.0, 50)
    assert (alike.better, alike.p, alike.p_corrected) == (None, 1.0, 1.0)
    assert [contrast.better for contrast in compare(weak, strong, 500, SEED)] == ["second", None]


def test_models_with_other_truth_or_propensities_are_refused() -> None:
    """If this failed, PSP with other constants would be compared as if it were the same figure."""
    with pytest.raises(BadInput, match="same queries"):
        permutation_test([Ratio(np.ones(3), np.ones(3))], [Ratio(np.ones(3), np.full(3, 2.0))])
