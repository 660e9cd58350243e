"""Votes of a query's nearest training queries for their labels.

    votes_l = Σ_j softmax(s / τ)_j · s_j · y_jl

j runs over the nearest training queries, s_j is their similarity to the query, y_jl in [0, 1] the weight of label l of
training query j. A negative similarity counts as 0, so a vote never lowers a score.

Training, evaluation, export and the retriever all call `cast_votes`. It needs NumPy only.

Suffixes: Q queries, N neighbours of a query, X neighbours of all queries, M training queries, V labels of all training
queries, P pairs of a query and a label, E labels of all neighbours, L labels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.memory_labels import MemoryLabels

LOWEST, TINY = -1e30, 1e-300  # where a query has no neighbour


class Votes(NamedTuple):
    """Votes per pair of a query and a label, ascending by query and then by label; each pair occurs once."""

    query_P: NDArray[np.int64]
    label_P: NDArray[np.int64]
    vote_P: NDArray[np.float64]


def neighbour_shares(similarity_QN: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float64]:
    """Return softmax(s / τ) · max(s, 0) of each neighbour [Q, N]; 0 where the similarity is −∞ (no neighbour)."""
    score_QN = similarity_QN.astype(np.float64)
    largest_Q1 = score_QN.max(axis=1, keepdims=True, initial=LOWEST)
    shares_QN: NDArray[np.float64] = np.exp((score_QN - largest_Q1) / temperature)
    shares_QN *= np.maximum(score_QN, 0.0) / (shares_QN.sum(axis=1, keepdims=True) + TINY)
    return shares_QN


def cast_votes(
    neighbour_QN: NDArray[np.int64],
    shares_QN: NDArray[np.float64],
    labels: MemoryLabels,
    allowed_L: NDArray[np.bool_] | None = None,
) -> Votes:
    """Sum the votes of each query's neighbours (rows of the memory) per label.

    `shares_QN` are those of `neighbour_shares`; a neighbour with share 0 casts no vote. `allowed_L`: only these labels
    get votes.
    """
    neighbour_E, position_E = _expand(neighbour_QN.ravel(), labels, shares_QN.ravel() > 0)
    label_E = labels.label_V[position_E]
    vote_E = shares_QN.ravel()[neighbour_E] * labels.weight_V[position_E]
    if allowed_L is not None:
        chosen_E = allowed_L[label_E]
        neighbour_E, label_E, vote_E = neighbour_E[chosen_E], label_E[chosen_E], vote_E[chosen_E]
    base = int(label_E.max(initial=0)) + 1
    key_E = neighbour_E // max(neighbour_QN.shape[1], 1) * base + label_E
    order_E = np.argsort(key_E, kind="stable")  # a fixed order of summation: the same votes on every call
    sorted_E = key_E[order_E]
    is_first_E = np.ones(len(sorted_E), np.bool_)
    np.not_equal(sorted_E[1:], sorted_E[:-1], out=is_first_E[1:])
    first_P = np.flatnonzero(is_first_E)
    vote_P = np.add.reduceat(vote_E[order_E], first_P) if len(first_P) else np.empty(0, np.float64)
    query_P, label_P = np.divmod(sorted_E[first_P], base)
    return Votes(query_P, label_P, vote_P)


def supporters(
    neighbour_N: NDArray[np.int64],
    shares_N: NDArray[np.float64],
    labels: MemoryLabels,
    label_K: Sequence[int],
    count: int,
) -> list[list[tuple[int, float]]]:
    """Return for each label up to `count` of a query's neighbours that vote for it, the largest votes first.

    Each is a row of the memory and its vote.
    """
    neighbour_E, position_E = _expand(neighbour_N, labels, shares_N > 0)
    label_E, vote_E = labels.label_V[position_E], shares_N[neighbour_E] * labels.weight_V[position_E]
    row_E = neighbour_N[neighbour_E]
    order_E = np.lexsort((row_E, -vote_E, label_E))
    sorted_E, rows, votes = label_E[order_E], row_E[order_E].tolist(), vote_E[order_E].tolist()
    begins, ends = (np.searchsorted(sorted_E, label_K, side).tolist() for side in ("left", "right"))
    stops = [min(end, begin + count) for begin, end in zip(begins, ends, strict=True)]
    return [
        list(zip(rows[begin:stop], votes[begin:stop], strict=True)) for begin, stop in zip(begins, stops, strict=True)
    ]


def _expand(
    row_X: NDArray[np.int64], labels: MemoryLabels, votes_X: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each label of each voting neighbour: the place of the neighbour in X, and the place in V."""
    start_X = labels.starts_M1[row_X]
    length_X = (labels.starts_M1[row_X + 1] - start_X) * votes_X
    stop_X = np.cumsum(length_X)
    neighbour_E = np.repeat(np.arange(len(row_X)), length_X)
    return neighbour_E, np.arange(len(neighbour_E)) + (start_X - stop_X + length_X)[neighbour_E]
