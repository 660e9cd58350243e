"""Confidence intervals by bootstrap, and tests of the difference between two models, corrected for many tests.

Every metric is a ratio of two sums over queries (retrieval.metrics.Ratio). A resample draws queries and divides the new
sums, so PSP@k and the recall of a label group get a new denominator with every resample.

Hand-written because scipy.stats.bootstrap and permutation_test handle neither ratios of sums nor the maxT correction.

Shapes: Q queries, M metrics, R resamples, B resamples of a block.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BadInput
from retrieval.metrics import FloatArray, Ratio

RESAMPLES = 10_000
SEED = 0
ALPHA = 0.05  # level of the intervals (95 %) and of the corrected tests
VALUES_PER_BLOCK = 1 << 22
ROUNDING = 1e-9  # sums in another order differ in their last bits, and must count as equal
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A metric in percent, or a difference in points, with its 95 % interval; None with fewer than two queries."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Contrast(Generic[Key]):
    """One metric of a comparison: both values, first minus second with its interval, and the two-sided p-values.

    `better` is "first" or "second" if the corrected test finds a difference.
    """

    key: Key
    first: float
    second: float
    difference: Estimate
    queries: int
    p: float
    p_corrected: float
    better: str | None


class Bootstrap(Generic[Key]):
    """Metrics over `resamples` draws of the queries, the same draws for every metric, so that differences are paired.

    All ratios have Q entries for the same queries. Intervals are percentiles; a draw in which no query counts is
    ignored.
    """

    def __init__(self, ratios: Mapping[Key, Ratio], resamples: int = RESAMPLES, seed: int = SEED) -> None:
        self._ratios = ratios
        self._column = {key: at for at, key in enumerate(ratios)}
        gain_QM = np.stack([ratio.gain_Q for ratio in ratios.values()], axis=1)
        base_QM = np.stack([ratio.base_Q for ratio in ratios.values()], axis=1)
        generator = np.random.default_rng(seed)
        draws = []
        for size in _blocks(resamples, len(gain_QM)):
            count_BQ = _draw_counts(generator, size, len(gain_QM))
            base_BM = count_BQ @ base_QM
            draws.append(np.divide(count_BQ @ gain_QM, base_BM, out=np.full_like(base_BM, np.nan), where=base_BM > 0))
        self._percent_RM = 100.0 * np.concatenate(draws)

    def estimate(self, key: Key) -> Estimate:
        """Return a metric with its interval."""
        ratio = self._ratios[key]
        return _estimate(ratio.percent, self._percent_RM[:, self._column[key]], ratio.queries)

    def difference(self, first: Key, second: Key) -> Estimate:
        """Return first minus second, with the interval of their difference over the same draws."""
        a, b = self._ratios[first], self._ratios[second]
        drawn_R = self._percent_RM[:, self._column[first]] - self._percent_RM[:, self._column[second]]
        return _estimate(a.percent - b.percent, drawn_R, min(a.queries, b.queries))


def compare(
    first: Mapping[Key, Ratio], second: Mapping[Key, Ratio], resamples: int = RESAMPLES, seed: int = SEED
) -> list[Contrast[Key]]:
    """Compare two models on the same queries, metric by metric: paired bootstrap interval and permutation test.

    Both mappings have the same keys. Intervals are not corrected for the number of metrics.
    """
    keys = list(first)
    p_M, corrected_M = permutation_test([first[key] for key in keys], [second[key] for key in keys], resamples, seed)
    both = {(side, key): ratios[key] for side, ratios in enumerate((first, second)) for key in keys}
    bootstrap = Bootstrap(both, resamples, seed)
    contrasts = []
    for key, p, corrected in zip(keys, p_M.tolist(), corrected_M.tolist(), strict=True):
        difference = bootstrap.difference((0, key), (1, key))
        better = ("first" if difference.value > 0 else "second") if corrected < ALPHA else None
        a, b = first[key], second[key]
        contrasts.append(Contrast(key, a.percent, b.percent, difference, a.queries, p, corrected, better))
    return contrasts


def permutation_test(
    first: Sequence[Ratio], second: Sequence[Ratio], resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[FloatArray, FloatArray]:
    """Return two-sided p-values [M] of "both models are equally good", and the p-values corrected for M tests.

    Each query swaps its two results with probability ½, the same for every metric, so few queries suffice.
    The correction is the step-down maxT of Westfall and Young (1993): the probability of any false difference stays
    below α, and correlated metrics cost less than with Bonferroni or Holm. Raises BadInput if the denominators differ,
    because the true labels or the propensities differ.
    """
    for a, b in zip(first, second, strict=True):
        if not np.array_equal(a.base_Q, b.base_Q):
            raise BadInput("two models can be compared only on the same queries, true labels and propensities")
    difference_QM = np.stack([a.gain_Q - b.gain_Q for a, b in zip(first, second, strict=True)], axis=1)
    difference_QM = difference_QM[difference_QM.any(axis=1)]
    spread_M = np.sqrt((difference_QM**2).sum(axis=0))
    scaled_QM = difference_QM / np.where(spread_M > 0, spread_M, 1.0)
    statistic_M = np.abs(scaled_QM.sum(axis=0)) - ROUNDING
    rising_M = np.argsort(statistic_M, kind="stable")
    generator = np.random.default_rng(seed)
    exceeded_M, max_exceeded_M = np.zeros((2, len(first)), np.int64)
    for size in _blocks(resamples, max(len(scaled_QM), len(first))):
        sign_BQ = 2.0 * generator.integers(0, 2, (size, len(scaled_QM)), np.int8) - 1.0
        swapped_BM = np.abs(sign_BQ @ scaled_QM)[:, rising_M]
        exceeded_M[rising_M] += (swapped_BM >= statistic_M[rising_M]).sum(axis=0)
        # Step down: a metric is compared only with metrics of a smaller or equal statistic.
        max_BM = np.maximum.accumulate(swapped_BM, axis=1)
        max_exceeded_M[rising_M] += (max_BM >= statistic_M[rising_M]).sum(axis=0)
    p_M = np.asarray((1 + exceeded_M) / (1 + resamples), np.float64)
    corrected_M = np.asarray((1 + max_exceeded_M) / (1 + resamples), np.float64)
    falling_M = rising_M[::-1]
    corrected_M[falling_M] = np.maximum.accumulate(corrected_M[falling_M])
    return p_M, corrected_M


def _draw_counts(generator: np.random.Generator, size: int, n_queries: int) -> FloatArray:
    """Return how often each query occurs [B, Q] in a draw of Q queries with replacement."""
    drawn_BQ = generator.integers(0, n_queries, (size, n_queries), np.int64)
    drawn_BQ += np.arange(size)[:, None] * n_queries
    return np.bincount(drawn_BQ.ravel(), minlength=size * n_queries).reshape(size, n_queries).astype(np.float64)


def _estimate(value: float, drawn_R: NDArray[np.float64], queries: int) -> Estimate:
    if queries < 2:
        return Estimate(value)
    low, high = np.nanpercentile(drawn_R, [50 * ALPHA, 100 - 50 * ALPHA])
    return Estimate(value, float(low), float(high))


def _blocks(resamples: int, n_queries: int) -> Iterator[int]:
    """Yield block sizes that add up to `resamples` and bound the memory of a block."""
    size = max(1, VALUES_PER_BLOCK // n_queries)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
