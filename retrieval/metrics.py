"""Ranking metrics of extreme classification: P@k, nDCG@k, PSP@k, R@k and C@k, in numpy.

Suffixes: Q queries, K ranks (best first), L labels, P (query, true label) pairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BadInput

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.float64]


def propensities(label_counts_L: IntArray, n_queries: int, a: float = 0.55, b: float = 1.5) -> FloatArray:
    """The inverse propensity 1/p of each label (Jain et al. 2016, section 4).

    `label_counts_L` counts each label's positives among `n_queries` training queries; a and b are its constants.
    """
    if n_queries < 1:
        raise BadInput(f"propensities need at least one training query, not {n_queries}")
    scale = (np.log(n_queries) - 1.0) * (b + 1.0) ** a
    return np.asarray(1.0 + scale * (np.asarray(label_counts_L, np.float64) + b) ** -a)


def evaluate(
    top_rows_QK: IntArray,
    truth: Sequence[IntArray],
    inverse_propensity_L: FloatArray,
    ks: Sequence[int] = (1, 3, 5, 10),
) -> dict[str, float]:
    """P@k, nDCG@k, PSP@k, R@k and C@k in percent, for each k, over the queries that have a true label.

    `top_rows_QK` holds label rows, best first, −1 where a ranking is shorter. PSP@k is the gain summed over all queries
    divided by the best possible sum. C@k is the share of the labels in the truth that the first k of some query found.
    Raises BadInput for a ranking that repeats a label, for unequal lengths and where no query has a true label.
    """
    ranked_QK, hit_QK, pair_query_P, pair_label_P = _match(top_rows_QK, truth, max(ks), len(inverse_propensity_L))
    n_queries = len(ranked_QK)
    n_true_Q = np.bincount(pair_query_P, minlength=n_queries)
    gain_QK = np.where(hit_QK, inverse_propensity_L[ranked_QK], 0.0)
    rank_P = _rank_by_gain(pair_query_P, inverse_propensity_L[pair_label_P])
    discount_K = 1.0 / np.log2(np.arange(max(ks)) + 2.0)
    ideal_K = np.concatenate([[0.0], np.cumsum(discount_K)])
    n_distinct = len(np.unique(pair_label_P))
    figures: dict[str, float] = {}
    for k in ks:
        hit_Qk = hit_QK[:, :k]
        figures[f"P@{k}"] = float(hit_Qk.sum() / (n_queries * k))
        figures[f"nDCG@{k}"] = float(np.mean(hit_Qk @ discount_K[:k] / ideal_K[np.minimum(n_true_Q, k)]))
        best = inverse_propensity_L[pair_label_P[rank_P < k]].sum()
        figures[f"PSP@{k}"] = float(gain_QK[:, :k].sum() / best)
        figures[f"R@{k}"] = float(np.mean(hit_Qk.sum(axis=1) / n_true_Q))
        figures[f"C@{k}"] = len(np.unique(ranked_QK[:, :k][hit_Qk])) / n_distinct
    return {name: 100.0 * value for name, value in figures.items()}


def per_query_precision(top_rows_QK: IntArray, truth: Sequence[IntArray], k: int) -> FloatArray:
    """The share of each query's first k that is true, in [0, 1], for the queries with a true label, in their order."""
    n_labels = 1 + max((int(labels.max()) for labels in truth if len(labels)), default=-1)
    _, hit_QK, _, _ = _match(top_rows_QK, truth, k, max(n_labels, int(np.max(top_rows_QK, initial=-1)) + 1))
    return np.asarray(hit_QK.sum(axis=1) / k, np.float64)


def paired_interval(a_Q: FloatArray, b_Q: FloatArray) -> tuple[float, float, float]:
    """Mean of a − b over the same queries and the ends of its 95 % interval (normal approximation)."""
    difference_Q = np.asarray(a_Q, np.float64) - np.asarray(b_Q, np.float64)
    if difference_Q.size < 2:
        raise BadInput(f"a paired interval needs at least two queries, not {difference_Q.size}")
    mean = float(difference_Q.mean())
    half_width = 1.959964 * float(difference_Q.std(ddof=1)) / difference_Q.size**0.5
    return mean, mean - half_width, mean + half_width


def _match(
    top_rows_QK: IntArray, truth: Sequence[IntArray], k: int, n_labels: int
) -> tuple[IntArray, NDArray[np.bool_], IntArray, IntArray]:
    """Rankings and hits of the queries with truth, cut or padded to k, and their (query, label) pairs, each once."""
    top_rows_QK = np.asarray(top_rows_QK, np.int64)
    if top_rows_QK.ndim != 2 or len(top_rows_QK) != len(truth):
        raise BadInput(f"rankings of shape {top_rows_QK.shape} do not match the truth of {len(truth)} queries")
    scored = [query for query, labels in enumerate(truth) if len(labels)]
    if not scored:
        raise BadInput("no query has a true label, so there is nothing to score")
    ranked_QK = np.full((len(scored), k), -1, np.int64)
    width = min(k, top_rows_QK.shape[1])
    ranked_QK[:, :width] = top_rows_QK[scored, :width]
    _refuse_repeats(ranked_QK)
    counts_Q = [len(truth[query]) for query in scored]
    true_label_P = np.concatenate([np.asarray(truth[query], np.int64) for query in scored])
    lowest, highest = int(true_label_P.min()), max(int(ranked_QK.max()), int(true_label_P.max()))
    if lowest < 0 or highest >= n_labels:
        raise BadInput(f"label rows must lie between 0 and {n_labels - 1}; found {lowest if lowest < 0 else highest}")
    # One integer for a (query, label) pair makes membership a single sorted search instead of a loop over queries.
    keys_P = np.unique(np.repeat(np.arange(len(scored)), counts_Q) * n_labels + true_label_P)
    keys_QK = np.arange(len(scored))[:, None] * n_labels + ranked_QK
    hit_QK = (ranked_QK >= 0) & np.isin(keys_QK, keys_P)
    return ranked_QK, hit_QK, keys_P // n_labels, keys_P % n_labels


def _refuse_repeats(ranked_QK: IntArray) -> None:
    ordered_QK = np.sort(ranked_QK, axis=1)
    repeated_Q = ((ordered_QK[:, 1:] == ordered_QK[:, :-1]) & (ordered_QK[:, 1:] >= 0)).any(axis=1)
    if repeated_Q.any():
        raise BadInput(f"the ranking {ranked_QK[int(repeated_Q.argmax())].tolist()} names a label twice")


def _rank_by_gain(pair_query_P: IntArray, gain_P: FloatArray) -> IntArray:
    """Position of each pair among its query's pairs when the greatest gain comes first."""
    order_P = np.lexsort((-gain_P, pair_query_P))
    first_P = np.concatenate([[True], np.diff(pair_query_P[order_P]) != 0])
    start_P = np.maximum.accumulate(np.where(first_P, np.arange(len(order_P)), 0))
    rank_P = np.empty(len(order_P), np.int64)
    rank_P[order_P] = np.arange(len(order_P)) - start_P
    return rank_P
