"""Slice metrics by groups of labels and queries, and list the queries that a ranking gets most wrong.

Pure functions of rankings and true labels.

Shapes: Q queries, K ranks (best first, −1 where a ranking is shorter), L labels, V distinct counts, P pairs of a query
and a true label, T true labels of one query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.metrics import KS, IntArray, Ratio, match
from training.data.ragged import Ragged

BoolArray = NDArray[np.bool_]
LENGTHS = {"1 word": (1, 1), "2 words": (2, 2), "3–4 words": (3, 4), "5–8 words": (5, 8), "9+ words": (9, None)}
# Days from a label's first day to the first day of the queries, without the last; labels of the period itself have ≤ 0.
AGES = {"new": (-np.inf, 1), "1–6 days": (1, 7), "7–29 days": (7, 30), "30+ days": (30, np.inf)}


@dataclass(frozen=True)
class Answer:
    """One label of a ranking or of the true labels; `positives` counts its training positives.

    An answer is a `hit` if it is a true label; a true label is a `hit` if it is among the answers.
    """

    label: str
    positives: int
    hit: bool
    score: float | None = None


@dataclass(frozen=True)
class Example:
    """One query with its answers, best first, and its true labels, the most frequent first."""

    query: str
    answers: tuple[Answer, ...]
    truth: tuple[Answer, ...]


def frequency_groups(counts_L: IntArray) -> dict[str, BoolArray]:
    """Group labels into head, torso and tail, each with about a third of all training positives, and unseen ones.

    `counts_L` are each label's training positives. Labels of equal count stay together, so a group is a range of
    counts: they belong to the third that contains the middle of their positives. A group may be empty. Unseen labels
    have no positive.
    """
    counts_L = np.asarray(counts_L, np.int64)
    value_V, at_L = np.unique(counts_L, return_inverse=True)
    positives_V = np.bincount(at_L, counts_L, len(value_V))[::-1]
    middle_L = (np.cumsum(positives_V) - positives_V / 2)[::-1][at_L] / max(int(counts_L.sum()), 1)
    seen_L = counts_L > 0
    return {
        "head": seen_L & (middle_L <= 1 / 3),
        "torso": seen_L & (middle_L > 1 / 3) & (middle_L <= 2 / 3),
        "tail": seen_L & (middle_L > 2 / 3),
        "unseen": ~seen_L,
    }


def age_groups(age_L: NDArray[np.float32]) -> dict[str, BoolArray]:
    """Group labels by the days since they were first seen; NaN: unknown."""
    groups = {name: (age_L >= first) & (age_L < end) for name, (first, end) in AGES.items()}
    return groups | {"unknown": np.isnan(age_L)}


def label_group_ratios(
    ranking_QK: IntArray, truth: Ragged, groups: Mapping[str, BoolArray], ks: Sequence[int] = KS
) -> dict[str, dict[str, Ratio]]:
    """Compute P@k and R@k of each group of labels, per query; a group without any true label is omitted.

    P@k counts only hits in the group, so the values of disjoint groups add up to P@k of all labels. R@k is the recall
    of the group's true labels, averaged over the queries that have one.
    """
    n_labels = len(next(iter(groups.values())))
    ranked_QK, hit_QK, pair_query_P, pair_label_P = match(ranking_QK, truth, max(ks), n_labels)
    scored_Q = (truth.lengths > 0).astype(np.float64)
    by_group: dict[str, dict[str, Ratio]] = {}
    for name, member_L in groups.items():
        n_true_Q = np.bincount(pair_query_P[member_L[pair_label_P]], minlength=len(truth))
        if not n_true_Q.any():
            continue
        hits_QK = np.cumsum(hit_QK & member_L[ranked_QK], axis=1)
        has_Q = (n_true_Q > 0).astype(np.float64)
        by_group[name] = {f"P@{k}": Ratio(hits_QK[:, k - 1] / k, scored_Q) for k in ks}
        by_group[name] |= {f"R@{k}": Ratio(hits_QK[:, k - 1] / np.maximum(n_true_Q, 1), has_Q) for k in ks}
    return by_group


def length_groups(query_texts: Sequence[str]) -> dict[str, BoolArray]:
    """Group Q queries by their number of words, separated by white space; an empty query counts as one word."""
    words_Q = np.maximum([len(text.split()) for text in query_texts], 1)
    return {
        name: (words_Q >= shortest) & (words_Q <= (words_Q if longest is None else longest))
        for name, (shortest, longest) in LENGTHS.items()
    }


def history_groups(repeated_Q: BoolArray) -> dict[str, BoolArray]:
    """Group queries into those that are training queries too, and new ones."""
    return {"repeated": repeated_Q, "new": ~repeated_Q}


def query_group_ratios(ratios: Mapping[str, Ratio], groups: Mapping[str, BoolArray]) -> dict[str, dict[str, Ratio]]:
    """Restrict metrics per query to each group of queries; a group without a query that counts is omitted."""
    by_group = {
        name: {metric: ratio.within(chosen_Q) for metric, ratio in ratios.items()} for name, chosen_Q in groups.items()
    }
    return {name: of for name, of in by_group.items() if any(ratio.queries for ratio in of.values())}


def count_hits(ranking_QK: IntArray, truth: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of true labels among each query's K answers [Q], and the largest possible number [Q]."""
    n_labels = 1 + max(int(np.max(ranking_QK, initial=0)), int(np.max(truth.values, initial=0)))
    _, hit_QK, pair_query_P, _ = match(ranking_QK, truth, ranking_QK.shape[1], n_labels)
    return hit_QK.sum(axis=1), np.minimum(np.bincount(pair_query_P, minlength=len(truth)), ranking_QK.shape[1])


def worst_queries(ranking_QK: IntArray, truth: Ragged, count: int) -> NDArray[np.int64]:
    """Return up to `count` query rows that the ranking gets most wrong, the worst first.

    Ordered by the share of possible hits, then by the number of true labels (most first), then by row. A query without
    a miss is never returned.
    """
    hits_Q, possible_Q = count_hits(ranking_QK, truth)
    order_Q = np.lexsort((-truth.lengths, hits_Q / np.maximum(possible_Q, 1)))
    return order_Q[(hits_Q < possible_Q)[order_Q]][:count]


def example(
    query: str,
    ranking_K: IntArray,
    truth_T: NDArray[np.integer[Any]],
    label_texts: Sequence[str],
    counts_L: IntArray,
    scores_K: NDArray[np.floating[Any]] | None = None,
) -> Example:
    """Build an Example; `counts_L` are the labels' training positives."""
    answers_K = [int(row) for row in ranking_K if row >= 0]
    true = {int(row) for row in truth_T}
    return Example(
        query=query,
        answers=tuple(
            Answer(label_texts[row], int(counts_L[row]), row in true, None if scores_K is None else float(scores_K[at]))
            for at, row in enumerate(answers_K)
        ),
        truth=tuple(
            Answer(label_texts[row], int(counts_L[row]), row in answers_K)
            for row in sorted(true, key=lambda row: (-int(counts_L[row]), row))
        ),
    )


def percent(by_group: Mapping[str, Mapping[str, Ratio]]) -> dict[str, dict[str, float]]:
    """Return metrics in percent from metrics per query, by group."""
    return {name: {metric: ratio.percent for metric, ratio in of.items()} for name, of in by_group.items()}
