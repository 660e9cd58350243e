"""Estimate the probability that a result is examined at each position of a click log, relative to position 1.

Position-based model (Richardson et al. 2007; Craswell et al. 2008): P(click) = examination(position) · relevance(pair).
The estimate uses only pairs that were shown at several positions, so it does not confuse a good position with the good
results that are shown there. docs/decisions/0082 compares it with the EM algorithm of Chuklin et al. 2015.

Suffixes: N cells (a pair at a position), P pairs, K positions from 1.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DatasetError

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.float64]

MIN_EXAMINATION = 0.01  # so that a click counts 100 times at most
MAX_CLICKS_PER_PAIR = 200  # more clicks of a pair count in proportion, so that a bot on one pair has little influence
MAX_POSITION = 10_000
MAX_STEPS = 5_000
TOLERANCE = 1e-6  # of log examination, per step


def estimate_examination(
    pair_N: IntArray, position_N: IntArray, clicks_N: IntArray, impressions_N: IntArray
) -> FloatArray:
    """Return the examination probabilities [K] of positions 1 to K, where K is the largest position.

    pair_N: pair numbers from 0; position_N: positions from 1; clicks_N and impressions_N: counts per cell.

    Position 1 is 1.0, the others are between MIN_EXAMINATION and 1.0. A position that no clicked pair links to position
    1, directly or through other positions, has the value of the next position before it that is linked.

    Raises DatasetError for a position below 1, more clicks than impressions, and a log from which nothing can be
    estimated.
    """
    _check_cells(position_N, clicks_N, impressions_N)
    n_positions = int(position_N.max())
    used_N = _linked_to_first(pair_N, position_N, clicks_N, impressions_N)
    pair, position = _renumbered(pair_N[used_N]), position_N[used_N] - 1
    share: FloatArray = np.minimum(MAX_CLICKS_PER_PAIR / np.bincount(pair, clicks_N[used_N]), 1.0)[pair]
    clicks, impressions = share * clicks_N[used_N], share * impressions_N[used_N]
    clicks_K = np.bincount(position, clicks, n_positions)
    if not clicks_K[0]:
        raise DatasetError(
            "No pair that was shown at position 1 and at another position was clicked at position 1, so examination "
            "cannot be estimated. Give a table of probabilities, or leave out the position column."
        )
    clicked_K = clicks_K > 0  # a position without a click has the estimate 0
    clicked_N = clicked_K[position]
    step = _log_step(pair[clicked_N], _renumbered(position[clicked_N]), clicks[clicked_N], impressions[clicked_N])
    examination_K = np.zeros(n_positions)
    examination_K[clicked_K] = np.exp(_fixed_point(step, np.zeros(int(clicked_K.sum()))))
    linked_K = np.bincount(position, minlength=n_positions) > 0
    nearest_K = np.maximum.accumulate(np.where(linked_K, np.arange(n_positions), 0))
    return np.clip(examination_K[nearest_K], MIN_EXAMINATION, 1.0)


def examination_from_table(table: Mapping[int, float]) -> FloatArray:
    """Return the probabilities [K] of a table {position: probability}, divided by that of position 1.

    Raises DatasetError unless the table has every position from 1 to its largest, with numbers above 0 and at most 1.
    """
    if not table:
        raise DatasetError("The table of examination probabilities is empty. Give a probability for each position.")
    for position, value in table.items():
        if isinstance(position, bool) or not isinstance(position, int) or not 1 <= position <= MAX_POSITION:
            raise DatasetError(
                f"Position {position!r} is not an integer from 1 to {MAX_POSITION:,}. Correct the table."
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise DatasetError(
                f"The examination probability of position {position} is {value!r}. Give a number above 0, at most 1."
            )
    for position in range(1, max(table) + 1):
        if position not in table:
            raise DatasetError(f"Position {position} has no examination probability. Add it to the table.")
    values_K = np.array([table[position] for position in sorted(table)], np.float64)
    return np.asarray(np.clip(values_K / values_K[0], MIN_EXAMINATION, 1.0))


def inverse_examination(position_N: IntArray, examination_K: FloatArray) -> FloatArray:
    """Return the weight [N] of a click at each position: 1 / examination. Positions above K count as position K.

    Raises DatasetError for a position below 1.
    """
    _check_positions(position_N)
    return np.asarray(1.0 / examination_K[np.minimum(position_N, len(examination_K)) - 1])


def _check_positions(position_N: IntArray) -> None:
    if len(position_N) and (lowest := int(position_N.min())) < 1:
        fix = "Add 1 to the position column." if lowest == 0 else "Correct the position column."
        raise DatasetError(f"The lowest position is {lowest}, and positions count from 1. {fix}")


def _check_cells(position_N: IntArray, clicks_N: IntArray, impressions_N: IntArray) -> None:
    """Raise DatasetError for cells that no log can have, and for a log without impressions."""
    _check_positions(position_N)
    if not len(position_N) or not impressions_N.any():
        raise DatasetError(
            "Examination cannot be estimated from a log without impressions. Give a table of probabilities, or leave "
            "out the position column."
        )
    if (highest := int(position_N.max())) > MAX_POSITION:
        raise DatasetError(f"The highest position is {highest:,}; the limit is {MAX_POSITION:,}. Correct the column.")
    wrong = np.flatnonzero(clicks_N > impressions_N)
    if len(wrong):
        clicks, impressions = int(clicks_N[wrong[0]]), int(impressions_N[wrong[0]])
        raise DatasetError(
            f"A pair has {clicks:,} clicks and {impressions:,} impressions at position {int(position_N[wrong[0]])}. "
            "Correct the columns of clicks and impressions."
        )


def _linked_to_first(
    pair_N: IntArray, position_N: IntArray, clicks_N: IntArray, impressions_N: IntArray
) -> NDArray[np.bool_]:
    """Return which cells link position 1 with other positions. Raises DatasetError if there are none.

    A pair without clicks or with one position has no influence on the estimate.
    """
    n_pairs = int(pair_N.max()) + 1
    shown_N = impressions_N > 0
    one_position_P = np.zeros(n_pairs, position_N.dtype)
    one_position_P[pair_N[shown_N]] = position_N[shown_N]
    several_P = np.zeros(n_pairs, bool)
    several_P[pair_N[shown_N & (position_N != one_position_P[pair_N])]] = True
    useful_P = several_P & (np.bincount(pair_N, clicks_N, n_pairs) > 0)
    useful_N = shown_N & useful_P[pair_N]
    linked_K = np.zeros(int(position_N.max()) + 1, bool)
    linked_K[1] = True
    linked_P, before = np.zeros(n_pairs, bool), 0
    while (linked := int(linked_K.sum())) > before:
        linked_P[pair_N[useful_N & linked_K[position_N]]] = True
        linked_K[position_N[useful_N & linked_P[pair_N]]] = True
        before = linked
    if before == 1:
        raise DatasetError(
            "No clicked pair was shown at position 1 and at another position, so examination cannot be estimated. "
            "Give a table of probabilities, or leave out the position column."
        )
    return np.asarray(useful_N & linked_P[pair_N])


def _renumbered(number_N: IntArray) -> IntArray:
    """Return numbers from 0 without gaps, in the same order."""
    is_used = np.zeros(int(number_N.max()) + 1, np.int64)
    is_used[number_N] = 1
    return np.asarray((np.cumsum(is_used) - 1)[number_N])


def _log_step(
    pair_N: IntArray, position_N: IntArray, clicks_N: FloatArray, impressions_N: FloatArray
) -> Callable[[FloatArray], FloatArray]:
    """Return a function that maximises the likelihood over relevance, then over log examination.

    Clicks are Poisson with mean impressions · examination · relevance. Both maxima have a closed form, and the estimate
    of examination is consistent for any number of impressions per pair (Wooldridge 1999), also for clicks that are
    binomial.
    """
    clicks_P, clicks_K = np.bincount(pair_N, clicks_N), np.bincount(position_N, clicks_N)

    def step(log_examination_K: FloatArray) -> FloatArray:
        examined_N = impressions_N * np.exp(log_examination_K)[position_N]
        relevance_P = clicks_P / np.bincount(pair_N, examined_N)
        next_K = np.log(clicks_K / np.bincount(position_N, impressions_N * relevance_P[pair_N]))
        return np.asarray(next_K - next_K[0])

    return step


def _fixed_point(step: Callable[[FloatArray], FloatArray], x_K: FloatArray) -> FloatArray:
    """Return x with step(x) = x, by squared extrapolation (SQUAREM; Varadhan and Roland 2008, scheme S3).

    Raises DatasetError if MAX_STEPS steps are not enough.
    """
    for _ in range(MAX_STEPS // 3):
        first_K = step(x_K)
        second_K = step(first_K)
        change_K, curvature_K = first_K - x_K, second_K - 2 * first_K + x_K
        if np.abs(second_K - first_K).max() < TOLERANCE:
            return second_K
        curvature = float(np.linalg.norm(curvature_K))
        length = max(float(np.linalg.norm(change_K)) / curvature, 1.0) if curvature else 1.0
        x_K = step(x_K + 2 * length * change_K + length**2 * curvature_K)
    raise DatasetError(
        f"Examination probabilities did not converge in {MAX_STEPS:,} steps: too few pairs were shown at several "
        "positions. Give a table of probabilities, or leave out the position column."
    )
