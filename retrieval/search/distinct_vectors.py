"""Nodes of an index: one per distinct vector. Labels with equal vectors share a node.

In a graph with many equal vectors, equal nodes link only to each other and cannot be reached. The index therefore holds
each vector once, and each node is replaced by its labels after the search.

Suffixes: L labels, N nodes, S labels that a filter allows, B labels of a block, Q queries, C candidates, E expanded
labels, K results, X any shape.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.index_file import Buffer
from retrieval.bundle.vector_file import array_in
from retrieval.errors import BundleError
from retrieval.quantized_vectors import LabelVectors

# rows, scores, dual-encoder scores, classifier scores
ScoredRows = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

LABELS_PER_BLOCK = 8_192
MAX_EXPANDED = 1 << 22  # labels per pass of `expand`; bounds its memory


@dataclass(frozen=True, eq=False)
class Nodes:
    """The labels of each node, in the order of their rows.

    `node_L` is the node of each label. `rows_S` holds the labels grouped by node; those of node n are
    `rows_S[starts_N1[n]:starts_N1[n + 1]]`. After `among`, a node may have none.
    """

    node_L: NDArray[np.int32]
    rows_S: NDArray[np.int32]
    starts_N1: NDArray[np.int64]

    @classmethod
    def of(cls, node_L: NDArray[np.int32]) -> Self:
        """Group labels by their nodes."""
        return cls(node_L, np.argsort(node_L, kind="stable").astype(np.int32), _starts(node_L, int(node_L.max()) + 1))

    @property
    def size(self) -> int:
        """Return the number of nodes, including those without labels."""
        return len(self.starts_N1) - 1

    @cached_property
    def used_N(self) -> NDArray[np.bool_]:
        """Return which nodes have a label."""
        return np.diff(self.starts_N1) > 0

    @cached_property
    def representatives(self) -> NDArray[np.int64]:
        """Return the first label of each node that has labels, in ascending order."""
        return np.sort(self.first_rows(np.flatnonzero(self.used_N)))

    @cached_property
    def shared_L(self) -> NDArray[np.bool_]:
        """Return which labels share their node."""
        return (np.diff(self.starts_N1) > 1)[self.node_L]

    def among(self, mask_L: NDArray[np.bool_]) -> "Nodes":
        """Return the same nodes with only the labels in `mask_L`."""
        rows_S = self.rows_S[mask_L[self.rows_S]]
        return Nodes(self.node_L, rows_S, _starts(self.node_L[rows_S], self.size))

    def first_rows(self, node_X: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first label of each of these nodes, in the same shape; each must have a label."""
        return self.rows_S[self.starts_N1[node_X]].astype(np.int64)


def _starts(node_S: NDArray[np.int32], size: int) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(node_S, minlength=size))])


def first_equal_rows(vectors_LD: LabelVectors) -> NDArray[np.int64]:
    """Return for each vector the first row with an equal one [L]; its own row if no earlier vector is equal."""
    size, dim = vectors_LD.shape
    factors_D = np.random.default_rng(0).integers(0, 1 << 64, dim, np.uint64) | np.uint64(1)
    hash_L = np.empty(size, np.uint64)
    for start in range(0, size, LABELS_PER_BLOCK):
        # Adding zero turns −0.0, which equals 0.0, into the same bits.
        block_BD = np.ascontiguousarray(vectors_LD[start : start + LABELS_PER_BLOCK], np.float32) + np.float32(0)
        hash_L[start : start + len(block_BD)] = block_BD.view(np.uint32) @ factors_D
    _, first_U, place_L = np.unique(hash_L, return_index=True, return_inverse=True)
    first_L = first_U[place_L].astype(np.int64)
    repeated = np.flatnonzero(first_L != np.arange(size))
    for start in range(0, len(repeated), LABELS_PER_BLOCK):
        rows = repeated[start : start + LABELS_PER_BLOCK]
        differs = (vectors_LD[rows] != vectors_LD[first_L[rows]]).any(axis=1)
        first_L[rows[differs]] = rows[differs]  # a hash collision: its own node
    return first_L


def nodes_of(vectors_LD: LabelVectors) -> Nodes:
    """Make one node per distinct vector, numbered in the order of their first labels."""
    first_L = first_equal_rows(vectors_LD)
    number_L = np.cumsum(first_L == np.arange(len(first_L))) - 1
    return Nodes.of(number_L[first_L].astype(np.int32))


def nodes_in(content: Buffer, path: Path, labels: int, size: int) -> Nodes:
    """Read the node of each label from the bytes of nodes.npy, and check every number. Raises BundleError.

    Nodes are numbered by their first labels, so each number is at most one more than the maximum before it.
    """
    node_L: NDArray[np.int32] = array_in(content, path, (labels,), np.int32)
    maximum_L = np.maximum.accumulate(node_L)
    is_numbered = node_L[0] == 0 and int(node_L.min()) == 0 and (np.diff(maximum_L) <= 1).all()
    if not is_numbered or int(maximum_L[-1]) != size - 1:
        raise BundleError(f"{path} does not number {size} nodes from 0 by their first label. Export the bundle again.")
    return Nodes.of(node_L)


def expand(scored: ScoredRows, nodes: Nodes, k: int) -> ScoredRows:
    """Replace nodes by their labels: the k best labels of each query, equal scores in the order of rows.

    `scored` holds nodes [Q, C] by their first allowed label, best first: at least k nodes, or all. At least k labels
    are allowed.
    """
    queries = len(scored[0])
    if not k:
        return scored
    rows_QC, scores_QC, dual_QC, classifier_QC = scored
    if not nodes.shared_L[rows_QC[:, :k]].any():  # the usual case; the expansion takes a third of a search
        return rows_QC[:, :k], scores_QC[:, :k], dual_QC[:, :k], classifier_QC[:, :k]
    size = max(1, min(queries, MAX_EXPANDED // (k * k)))
    passes = [
        _expand(tuple(one[start : start + size, :k] for one in scored), nodes, k)  # type: ignore[arg-type]
        for start in range(0, max(queries, 1), size)
    ]
    rows, scores, dual, classifier = zip(*passes, strict=True)
    return np.concatenate(rows), np.concatenate(scores), np.concatenate(dual), np.concatenate(classifier)


def _expand(scored: ScoredRows, nodes: Nodes, k: int) -> ScoredRows:
    rows_QC, scores_QC, *halves = scored
    columns = rows_QC.shape[1]
    node_QC = nodes.node_L[rows_QC]
    # Of the node at place j, at most k − j labels can be among the k best: j nodes have an earlier first label.
    used_QC = np.minimum(nodes.starts_N1[node_QC + 1] - nodes.starts_N1[node_QC], k - np.arange(columns))
    before_QC = np.cumsum(used_QC, axis=1) - used_QC
    last_Q1 = np.take_along_axis(scores_QC, (before_QC < k).sum(axis=1, keepdims=True) - 1, 1)
    used_QC[(before_QC >= k) & (scores_QC < last_Q1)] = 0
    used_X = used_QC.ravel()
    place_E = np.repeat(np.arange(used_X.size), used_X)
    nth_E = np.arange(len(place_E)) - np.repeat(np.cumsum(used_X) - used_X, used_X)
    row_E = nodes.rows_S[nodes.starts_N1[node_QC.ravel()[place_E]] + nth_E].astype(np.int64)
    query_E = place_E // columns
    order_E = np.lexsort((row_E, -scores_QC.ravel()[place_E], query_E))
    begins_Q = np.cumsum(used_QC.sum(axis=1)) - used_QC.sum(axis=1)
    best_QK = order_E[begins_Q[:, None] + np.arange(k)]
    from_QK = place_E[best_QK]
    dual, classifier = (half_QC.ravel()[from_QK] for half_QC in halves)
    return row_E[best_QK], scores_QC.ravel()[from_QK], dual, classifier
