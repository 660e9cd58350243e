"""Ranking metrics of extreme classification, in NumPy: P@k, nDCG@k, PSP@k, R@k and C@k; with clicks, wP@k and wR@k.

All metrics but C@k are a sum over queries divided by another sum over queries. `ratios` returns both per query, so a
subset of the queries can be measured, and a metric resampled, without ranking again.

Suffixes: Q queries, K ranks (best first), L labels, P (query, true label) pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BadInput

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.float64]
KS = (1, 3, 5, 10)


@dataclass(frozen=True, eq=False)
class Ratio:
    """A metric Σ gain_Q / Σ base_Q. A query that does not count has 0 in both."""

    gain_Q: FloatArray
    base_Q: FloatArray

    @property
    def percent(self) -> float:
        """Return the metric in percent; NaN if no query counts."""
        base = float(self.base_Q.sum())
        return 100.0 * float(self.gain_Q.sum()) / base if base else float("nan")

    @property
    def queries(self) -> int:
        """Return the number of queries that count."""
        return int(np.count_nonzero(self.base_Q))

    def within(self, chosen_Q: NDArray[np.bool_]) -> "Ratio":
        """Return the metric over the chosen queries."""
        return Ratio(self.gain_Q * chosen_Q, self.base_Q * chosen_Q)


def propensities(label_counts_L: IntArray, n_queries: int, a: float = 0.55, b: float = 1.5) -> FloatArray:
    """Return the inverse propensity 1/p of each label (Jain et al. 2016, section 4).

    label_counts_L: positives of each label among `n_queries` training queries; a, b: constants of the dataset.
    Raises BadInput if `n_queries` is less than 1.
    """
    if n_queries < 1:
        raise BadInput(f"n_queries is {n_queries}; propensities need at least 1 training query.")
    scale = (np.log(n_queries) - 1.0) * (b + 1.0) ** a
    return np.asarray(1.0 + scale * (np.asarray(label_counts_L, np.float64) + b) ** -a)


def evaluate(
    top_rows_QK: IntArray, truth: Sequence[IntArray], inverse_propensity_L: FloatArray, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Return P@k, nDCG@k, PSP@k, R@k and C@k in percent, for each k, over the queries with a true label.

    top_rows_QK: label rows, best first, −1 after the end of a shorter ranking; truth: Q arrays of true label rows.
    PSP@k is the sum of gains over all queries divided by the best possible sum. C@k is the share of all true labels
    that are among the first k of a query that they are true for.
    Raises BadInput for a ranking with a repeated label, for different lengths, and if no query has a true label.
    """
    figures = {name: r.percent for name, r in ratios(top_rows_QK, truth, inverse_propensity_L, ks).items()}
    ranked_QK, hit_QK, _, pair_label_P = match(top_rows_QK, truth, max(ks), len(inverse_propensity_L))
    n_distinct = len(np.unique(pair_label_P))
    for k in ks:
        figures[f"C@{k}"] = 100.0 * len(np.unique(ranked_QK[:, :k][hit_QK[:, :k]])) / n_distinct
    return figures


def ratios(
    top_rows_QK: IntArray, truth: Sequence[IntArray], inverse_propensity_L: FloatArray, ks: Sequence[int] = KS
) -> dict[str, Ratio]:
    """Return P@k, nDCG@k, PSP@k and R@k for each k, per query. Arguments and errors are those of `evaluate`."""
    ranked_QK, hit_QK, pair_query_P, pair_label_P = match(top_rows_QK, truth, max(ks), len(inverse_propensity_L))
    n_true_Q = np.bincount(pair_query_P, minlength=len(ranked_QK))
    one_Q = (n_true_Q > 0).astype(np.float64)
    gain_QK = np.where(hit_QK, inverse_propensity_L[ranked_QK], 0.0)
    gain_P = inverse_propensity_L[pair_label_P]
    rank_P = _rank_by_gain(pair_query_P, gain_P)
    discount_K = 1.0 / np.log2(np.arange(max(ks)) + 2.0)
    ideal_K = np.concatenate([[1.0], np.cumsum(discount_K)])
    metrics: dict[str, Ratio] = {}
    for k in ks:
        hit_Qk = hit_QK[:, :k]
        best_Q = np.asarray(np.bincount(pair_query_P, gain_P * (rank_P < k), len(ranked_QK)), np.float64)
        metrics[f"P@{k}"] = Ratio(hit_Qk.sum(axis=1) / k, one_Q)
        metrics[f"nDCG@{k}"] = Ratio(hit_Qk @ discount_K[:k] / ideal_K[np.minimum(n_true_Q, k)], one_Q)
        metrics[f"PSP@{k}"] = Ratio(gain_QK[:, :k].sum(axis=1), best_Q)
        metrics[f"R@{k}"] = Ratio(hit_Qk.sum(axis=1) / np.maximum(n_true_Q, 1), one_Q)
    return metrics


def click_ratios(
    top_rows_QK: IntArray,
    truth: Sequence[IntArray],
    weight_V: NDArray[np.floating],
    n_labels: int,
    ks: Sequence[int] = KS,
) -> dict[str, Ratio]:
    """Return the click-weighted metrics wP@k and wR@k for each k, per query.

    weight_V: clicks of each true label, in the order of `truth`. Both are the clicks of the true labels among the first
    k, summed over the queries. wP@k divides them by the k greatest clicks of each query: 100 is the best possible
    ranking. wR@k divides them by all clicks. So a query counts in proportion to its clicks. Errors: see `evaluate`.
    """
    ranked_QK, hit_QK, pair_query_P, pair_label_P = match(top_rows_QK, truth, max(ks), n_labels)
    keys_P = pair_query_P * n_labels + pair_label_P
    row_V = np.repeat(np.arange(len(truth)), [len(labels) for labels in truth])
    position_V = np.searchsorted(
        keys_P, row_V * n_labels + np.concatenate([np.asarray(one, np.int64) for one in truth])
    )
    weight_P = np.zeros(len(keys_P))
    weight_P[position_V] = weight_V
    gain_QK = np.zeros(hit_QK.shape)
    row, column = np.nonzero(hit_QK)
    gain_QK[row, column] = weight_P[np.searchsorted(keys_P, row * n_labels + ranked_QK[row, column])]
    rank_P = _rank_by_gain(pair_query_P, weight_P)
    all_Q = np.asarray(np.bincount(pair_query_P, weight_P, len(ranked_QK)), np.float64)
    metrics: dict[str, Ratio] = {}
    for k in ks:
        clicks_Q = gain_QK[:, :k].sum(axis=1)
        best_Q = np.asarray(np.bincount(pair_query_P, weight_P * (rank_P < k), len(ranked_QK)), np.float64)
        metrics |= {f"wP@{k}": Ratio(clicks_Q, best_Q), f"wR@{k}": Ratio(clicks_Q, all_Q)}
    return metrics


def match(
    top_rows_QK: IntArray, truth: Sequence[IntArray], k: int, n_labels: int
) -> tuple[IntArray, NDArray[np.bool_], IntArray, IntArray]:
    """Match rankings with true labels.

    Returns the rankings cut or padded to k [Q, K], booleans for hits [Q, K], and query and label of the P distinct
    (query, true label) pairs. Raises the errors of `evaluate`.
    """
    top_rows_QK = np.asarray(top_rows_QK, np.int64)
    if top_rows_QK.ndim != 2 or len(top_rows_QK) != len(truth):
        raise BadInput(
            f"rankings of shape {top_rows_QK.shape} do not match {len(truth)} queries. Give one row per query."
        )
    counts_Q = [len(labels) for labels in truth]
    if not any(counts_Q):
        raise BadInput("no query has a true label, so no metric is defined. Give queries with true labels.")
    ranked_QK = np.full((len(truth), k), -1, np.int64)
    width = min(k, top_rows_QK.shape[1])
    ranked_QK[:, :width] = top_rows_QK[:, :width]
    _refuse_repeats(ranked_QK)
    true_label_P = np.concatenate([np.asarray(labels, np.int64) for labels in truth])
    lowest, highest = int(true_label_P.min()), max(int(ranked_QK.max()), int(true_label_P.max()))
    if lowest < 0 or highest >= n_labels:
        raise BadInput(
            f"label row {lowest if lowest < 0 else highest} is not between 0 and {n_labels - 1}. Use label rows."
        )
    # One integer per (query, label) pair: a single sorted search finds all hits, without a loop over queries
    keys_P = np.unique(np.repeat(np.arange(len(truth)), counts_Q) * n_labels + true_label_P)
    keys_QK = np.arange(len(truth))[:, None] * n_labels + ranked_QK
    hit_QK = (ranked_QK >= 0) & np.isin(keys_QK, keys_P)
    return ranked_QK, hit_QK, keys_P // n_labels, keys_P % n_labels


def _refuse_repeats(ranked_QK: IntArray) -> None:
    ordered_QK = np.sort(ranked_QK, axis=1)
    repeated_Q = ((ordered_QK[:, 1:] == ordered_QK[:, :-1]) & (ordered_QK[:, 1:] >= 0)).any(axis=1)
    if repeated_Q.any():
        raise BadInput(
            f"the ranking {ranked_QK[int(repeated_Q.argmax())].tolist()} contains a label twice. Rank each label once."
        )


def _rank_by_gain(pair_query_P: IntArray, gain_P: FloatArray) -> IntArray:
    """Return the rank of each pair among its query's pairs, largest gain first."""
    order_P = np.lexsort((-gain_P, pair_query_P))
    first_P = np.concatenate([[True], np.diff(pair_query_P[order_P]) != 0])
    start_P = np.maximum.accumulate(np.where(first_P, np.arange(len(order_P)), 0))
    rank_P = np.empty(len(order_P), np.int64)
    rank_P[order_P] = np.arange(len(order_P)) - start_P
    return rank_P
