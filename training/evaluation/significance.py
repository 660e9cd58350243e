"""How sure a figure is, and whether two models differ: queries resampled, queries swapped, many tests at once.

Every figure is a ratio of two sums over queries (retrieval.metrics.Ratio), so a resample draws queries and divides the
new sums: PSP@k and recall inside a group get a new denominator with every resample, as they should. Suffixes: Q
queries, M figures, B resamples of a block.
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
ALPHA = 0.05  # intervals hold 95 %, and a difference counts below this, corrected
NUMBERS_A_BLOCK = 1 << 22
ROUNDING = 1e-9  # the same sum in another order differs in its last bits, and must count as equal
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, in percent (points) with its 95 % interval; none under two queries."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Contrast(Generic[Key]):
    """One part of a comparison: both figures, first minus second with its interval, and the two-sided p-values.

    `better` is "first" or "second" where the corrected test finds a difference.
    """

    part: Key
    first: float
    second: float
    difference: Estimate
    queries: int
    p: float
    p_corrected: float
    better: str | None


class Bootstrap(Generic[Key]):
    """Figures over `resamples` draws of the queries, the same draws for every figure, so that differences are paired.

    All ratios have Q entries for the same queries. Intervals are percentiles; a draw without any query that counts is
    left out.
    """

    def __init__(self, ratios: Mapping[Key, Ratio], resamples: int = RESAMPLES, seed: int = SEED) -> None:
        self._ratios = ratios
        self._column = {key: at for at, key in enumerate(ratios)}
        gain_QM = np.stack([ratio.gain_Q for ratio in ratios.values()], axis=1)
        base_QM = np.stack([ratio.base_Q for ratio in ratios.values()], axis=1)
        generator = np.random.default_rng(seed)
        draws = []
        for size in _blocks(resamples, len(gain_QM)):
            times_BQ = _times_drawn(generator, size, len(gain_QM))
            base_BM = times_BQ @ base_QM
            draws.append(np.divide(times_BQ @ gain_QM, base_BM, out=np.full_like(base_BM, np.nan), where=base_BM > 0))
        self._percent_RM = 100.0 * np.concatenate(draws)

    def estimate(self, key: Key) -> Estimate:
        """A figure with its interval."""
        ratio = self._ratios[key]
        return _estimate(ratio.percent, self._percent_RM[:, self._column[key]], ratio.queries)

    def difference(self, first: Key, second: Key) -> Estimate:
        """First minus second, with the interval of their difference over the same draws."""
        a, b = self._ratios[first], self._ratios[second]
        drawn_R = self._percent_RM[:, self._column[first]] - self._percent_RM[:, self._column[second]]
        return _estimate(a.percent - b.percent, drawn_R, min(a.queries, b.queries))


def compare(
    first: Mapping[Key, Ratio], second: Mapping[Key, Ratio], resamples: int = RESAMPLES, seed: int = SEED
) -> list[Contrast[Key]]:
    """Two models on the same queries, part by part: paired bootstrap interval and paired permutation test.

    Both mappings hold the same parts. Intervals are not corrected for the number of parts.
    """
    parts = list(first)
    p_M, corrected_M = permutation_test(
        [first[part] for part in parts], [second[part] for part in parts], resamples, seed
    )
    both = {(side, part): of[part] for side, of in enumerate((first, second)) for part in parts}
    drawn = Bootstrap(both, resamples, seed)
    contrasts = []
    for part, p, corrected in zip(parts, p_M.tolist(), corrected_M.tolist(), strict=True):
        difference = drawn.difference((0, part), (1, part))
        better = ("first" if difference.value > 0 else "second") if corrected < ALPHA else None
        a, b = first[part], second[part]
        contrasts.append(Contrast(part, a.percent, b.percent, difference, a.queries, p, corrected, better))
    return contrasts


def permutation_test(
    first: Sequence[Ratio], second: Sequence[Ratio], resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[FloatArray, FloatArray]:
    """Two-sided p-values [M] that two models are as good, and the same corrected for the number of figures.

    Each query's two results change sides by the toss of a coin, the same toss for every figure: valid for few queries
    too. The correction is the step-down maxT of Westfall and Young (1993): the chance that one false difference counts
    among all figures stays below α, and figures that move together cost less than with Bonferroni or Holm. Raises
    BadInput unless a figure counts each query alike in both models, as the same truth and propensities make it.
    """
    for a, b in zip(first, second, strict=True):
        if not np.array_equal(a.base_Q, b.base_Q):
            raise BadInput("two models can be compared only on the same queries, truth and propensities")
    difference_QM = np.stack([a.gain_Q - b.gain_Q for a, b in zip(first, second, strict=True)], axis=1)
    difference_QM = difference_QM[difference_QM.any(axis=1)]
    spread_M = np.sqrt((difference_QM**2).sum(axis=0))
    scaled_QM = difference_QM / np.where(spread_M > 0, spread_M, 1.0)
    reached_M = np.abs(scaled_QM.sum(axis=0)) - ROUNDING
    rising_M = np.argsort(reached_M, kind="stable")
    generator = np.random.default_rng(seed)
    as_far_M, greatest_as_far_M = np.zeros((2, len(first)), np.int64)
    for size in _blocks(resamples, max(len(scaled_QM), len(first))):
        sign_BQ = 2.0 * generator.integers(0, 2, (size, len(scaled_QM)), np.int8) - 1.0
        tossed_BM = np.abs(sign_BQ @ scaled_QM)[:, rising_M]
        as_far_M[rising_M] += (tossed_BM >= reached_M[rising_M]).sum(axis=0)
        # Step down: a figure competes with those that reached no further than itself.
        greatest_BM = np.maximum.accumulate(tossed_BM, axis=1)
        greatest_as_far_M[rising_M] += (greatest_BM >= reached_M[rising_M]).sum(axis=0)
    p_M = np.asarray((1 + as_far_M) / (1 + resamples), np.float64)
    corrected_M = np.asarray((1 + greatest_as_far_M) / (1 + resamples), np.float64)
    falling_M = rising_M[::-1]
    corrected_M[falling_M] = np.maximum.accumulate(corrected_M[falling_M])
    return p_M, corrected_M


def _times_drawn(generator: np.random.Generator, size: int, n_queries: int) -> FloatArray:
    """How often each query is drawn [B, Q] when as many as there are are drawn with replacement."""
    drawn_BQ = generator.integers(0, n_queries, (size, n_queries), np.int64)
    drawn_BQ += np.arange(size)[:, None] * n_queries
    return np.bincount(drawn_BQ.ravel(), minlength=size * n_queries).reshape(size, n_queries).astype(np.float64)


def _estimate(value: float, drawn_R: NDArray[np.float64], queries: int) -> Estimate:
    if queries < 2:
        return Estimate(value)
    low, high = np.nanpercentile(drawn_R, [50 * ALPHA, 100 - 50 * ALPHA])
    return Estimate(value, float(low), float(high))


def _blocks(resamples: int, n_queries: int) -> Iterator[int]:
    """Sizes of blocks that add up to `resamples` and keep a block's arrays small."""
    size = max(1, NUMBERS_A_BLOCK // n_queries)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
