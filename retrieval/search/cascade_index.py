"""An index that descends a label tree with one classifier per level (CascadeXML, NeurIPS 2022).

A query vector [D] holds one part per level, [f_r ; 1]; a row of level r is [w ; b]. The score of a node is
σ(⟨part of the query, row⟩), that of a label is its own times its parent's. A search scores all nodes of level 0, and at
each level keeps the best nodes, the shortlist, and scores their children. It needs NumPy only.

Suffixes: Q queries, D width of a query vector, N nodes of a level, C candidates of a level, S shortlist, E width of a
level's rows, K results (best first), L labels, B labels of a block, R labels to compare.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BadInput, BundleError
from retrieval.search.indexes import FullScans, Rows, Vectors, checked, top_columns
from retrieval.search.label_tree import AllowedNodes, LabelTree
from retrieval.search.thread_pool import ThreadPool

Scores = NDArray[np.float64]

QUERIES_PER_PASS = 64  # of an exact search
ROWS_PER_BLOCK = 8_192  # labels that an exact search compares at a time; bounds memory
GATHERED_ROWS = 256  # a copy of them stays in the processor's cache until it is used
SPARE = 16  # labels that an exact search scores again, since products of matrices round differently by position
WIDENED = (
    "the shortlists had too few labels for %d queries so far; they were widened for them, which is slower. Export the "
    "bundle with larger shortlists, or request fewer labels."
)


class _Candidates(NamedTuple):
    """Nodes of one level that were scored for a query, and the place of each one's parent in the shortlist above."""

    node_C: Rows
    logit_C: Vectors
    place_C: Rows


class CascadeIndex:
    """Search the labels of a tree with the rows of each level; safe to use from several threads."""

    is_exact = False
    max_results = None

    def __init__(
        self, rows: Sequence[Vectors], tree: LabelTree, shortlist: Sequence[int], pool: ThreadPool | None = None
    ) -> None:
        """Use rows [N, E] and a tree that fit each other; `shortlist` is the number of nodes kept at each level.

        `pool`: threads that share the queries of a search; default: the caller's only. Raises BadInput and BundleError.
        """
        _check_levels(rows, tree, shortlist)
        self.rows, self.tree, self.shortlist = tuple(rows), tree, tuple(int(size) for size in shortlist)
        self.size, self.dims = tree.sizes[-1], tuple(int(rows_NE.shape[1]) for rows_NE in rows)
        self.dim = sum(self.dims)
        self.full_scans = FullScans(WIDENED)
        ends = np.cumsum(self.dims)
        self._parts = [slice(int(end) - width, int(end)) for end, width in zip(ends, self.dims, strict=True)]
        self._pool = pool or ThreadPool(1)

    @classmethod
    def build(
        cls,
        rows: Sequence[Vectors],
        parents: Sequence[NDArray[np.integer[Any]]],
        shortlist: Sequence[int],
        pool: ThreadPool | None = None,
    ) -> Self:
        """Build the tree from the parents of each level after the first. Raises BadInput and BundleError."""
        _check_rows(rows)
        return cls(rows, LabelTree.of(parents, len(rows[0])), shortlist, pool)

    def with_shortlist(self, shortlist: Sequence[int]) -> "CascadeIndex":
        """Return an index of the same rows, tree and threads with other shortlists. Raises BundleError."""
        return CascadeIndex(self.rows, self.tree, shortlist, self._pool)

    def close(self) -> None:
        """Stop its threads after the searches in progress."""
        self._pool.close()

    def search(self, query_QD: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return rows and scores of min(k, size) labels per query, best first. Raises BadInput."""
        rows_QK, scores_QK = self.rank(query_QD, k)
        return rows_QK, scores_QK.astype(np.float32)

    def rank(
        self, query_QD: Vectors, k: int, allowed: AllowedNodes | None = None, *, exact: bool = False
    ) -> tuple[Rows, Scores]:
        """Return rows and scores of the k best labels per query, best first; equal scores are ranked by row.

        There are k results if there are k labels (among the `allowed` ones, see `LabelTree.among`): the
        shortlists are widened for a query whose shortlists have fewer labels. Raises BadInput.

        Args:
            exact: compare the labels of all nodes.
        """
        query_QD = checked(query_QD, k, self.dim)
        k = min(k, self.size if allowed is None else allowed.count)
        if not k or not len(query_QD):
            return np.empty((len(query_QD), k), np.int64), np.empty((len(query_QD), k))
        # Comparing few allowed labels is cheaper than a search with shortlists.
        if exact or (allowed is not None and allowed.count <= max(k, self.labels_per_search)):
            row_R = None if allowed is None else allowed.rows_R
            parts = [
                self._compare(query_QD[start : start + QUERIES_PER_PASS], k, row_R)
                for start in range(0, len(query_QD), QUERIES_PER_PASS)
            ]
        else:
            parts = self._pool.map_parts(lambda part_QD: self._descend_all(part_QD, k, allowed), query_QD)
        rows, scores = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(scores)

    def shortlists(self, query_QD: Vectors, allowed: AllowedNodes | None = None) -> tuple[Rows, ...]:
        """Return the nodes that a search keeps at each level before the last, [Q, S] per level, best first.

        −1 fills the end of a query's row if the nodes above have fewer children. Raises BadInput.
        """
        query_QD = checked(query_QD, 1, self.dim)
        sizes = [min(size, nodes) for size, nodes in zip(self.shortlist, self.tree.sizes, strict=False)]
        chosen = tuple(np.full((len(query_QD), size), -1, np.int64) for size in sizes)
        for query, query_D in enumerate(query_QD):
            for rows_QS, node_S in zip(chosen, self._descend(query_D, self.shortlist, allowed)[0], strict=True):
                rows_QS[query, : len(node_S)] = node_S
        return chosen

    @property
    def labels_per_search(self) -> int:
        """Return the mean number of labels that a search compares."""
        return int(self.shortlist[-1] * self.size / self.tree.sizes[-2])

    def _descend_all(self, query_QD: Vectors, k: int, allowed: AllowedNodes | None) -> tuple[Rows, Scores]:
        rows_QK, scores_QK = np.empty((len(query_QD), k), np.int64), np.empty((len(query_QD), k))
        for query, query_D in enumerate(query_QD):
            shortlist, widened = self.shortlist, False
            _, above_S, labels = self._descend(query_D, shortlist, allowed)
            while len(labels.node_C) < k:
                shortlist, widened = tuple(2 * size for size in shortlist), True
                _, above_S, labels = self._descend(query_D, shortlist, allowed)
            if widened:
                self.full_scans.add(1)
            score_C = sigmoid(labels.logit_C) * sigmoid(above_S)[labels.place_C]
            best_K = best(score_C, labels.node_C, k)
            rows_QK[query], scores_QK[query] = labels.node_C[best_K], score_C[best_K]
        return rows_QK, scores_QK

    def _descend(
        self, query_D: Vectors, shortlist: Sequence[int], allowed: AllowedNodes | None
    ) -> tuple[list[Rows], Vectors, _Candidates]:
        """Return the nodes kept at each level, the logits of the last of them [S], and the scored labels."""
        node_C = np.arange(self.tree.sizes[0]) if allowed is None else np.flatnonzero(allowed.masks[0])
        level_0 = self._logits(0, node_C, query_D)
        candidates, chosen = _Candidates(node_C, level_0, np.zeros(len(node_C), np.int64)), []
        above_S = level_0
        for level, size in enumerate(shortlist):
            best_S = best(candidates.logit_C, candidates.node_C, size)
            node_S, above_S = candidates.node_C[best_S], candidates.logit_C[best_S]
            chosen.append(node_S)
            child_C, place_C = self.tree.children_of(level, node_S)
            if allowed is not None:
                allowed_C = allowed.masks[level + 1][child_C]
                child_C, place_C = child_C[allowed_C], place_C[allowed_C]
            candidates = _Candidates(child_C, self._logits(level + 1, child_C, query_D), place_C)
        return chosen, above_S, candidates

    def _logits(self, level: int, node_C: Rows, query_D: Vectors) -> Vectors:
        """Return the inner products of a query with rows of a level [C]; the same row always has the same product."""
        rows_NE, query_E = self.rows[level], query_D[self._parts[level]]
        logit_C = np.empty(len(node_C), np.float32)
        gathered_BE = np.empty((min(GATHERED_ROWS, len(node_C)), self.dims[level]), np.float32)
        for start in range(0, len(node_C), GATHERED_ROWS):
            block = slice(start, start + GATHERED_ROWS)
            row_B = node_C[block]
            rows_BE = np.take(rows_NE, row_B, axis=0, out=gathered_BE[: len(row_B)], mode="clip")  # all exist
            # Not a BLAS product: its rounding depends on a row's position, and equal labels must have equal scores.
            np.einsum("be,e->b", rows_BE, query_E, out=logit_C[block])
        logit_C[np.isnan(logit_C)] = -np.inf
        return logit_C

    def _compare(self, query_QD: Vectors, k: int, row_R: Rows | None) -> tuple[Rows, Scores]:
        """Return the k best labels among `row_R` (ascending; None: all), with the same scores as a search."""
        rows_QK, scores_QK = np.empty((len(query_QD), k), np.int64), np.empty((len(query_QD), k))
        for query, row_C in enumerate(self._most_similar(query_QD, k + SPARE, row_R)):
            score_C = self.score(query_QD[query], row_C)
            best_K = best(score_C, row_C, k)
            rows_QK[query], scores_QK[query] = row_C[best_K], score_C[best_K]
        return rows_QK, scores_QK

    def _most_similar(self, query_QD: Vectors, count: int, row_R: Rows | None) -> Rows:
        """Return the `count` best labels [Q, C] by approximate scores, unordered."""
        above_QN = sigmoid(self._products(-2, query_QD, self.rows[-2]))
        rows_QC, scores_QC = np.empty((len(query_QD), 0), np.int64), np.empty((len(query_QD), 0))
        for start in range(0, self.size if row_R is None else len(row_R), ROWS_PER_BLOCK):
            block = slice(start, min(start + ROWS_PER_BLOCK, self.size))
            row_B = np.arange(block.start, block.stop) if row_R is None else row_R[block]
            rows_BE = self.rows[-1][block if row_R is None else row_B]
            scores_QB = sigmoid(self._products(-1, query_QD, rows_BE)) * above_QN[:, self.tree.parents[-1][row_B]]
            scores_QC = np.concatenate([scores_QC, scores_QB], axis=1)
            rows_QC = np.concatenate([rows_QC, np.broadcast_to(row_B, scores_QB.shape)], axis=1)
            columns_QC = top_columns(scores_QC, count)
            rows_QC = np.take_along_axis(rows_QC, columns_QC, 1)
            scores_QC = np.take_along_axis(scores_QC, columns_QC, 1)
        return rows_QC

    def score(self, query_D: Vectors, row_C: Rows) -> Scores:
        """Return the scores of some labels [C] for one query [D]."""
        cluster_C = self.tree.parents[-1][row_C].astype(np.int64)
        levels = self.tree.levels
        label_C, above_C = self._logits(levels - 1, row_C, query_D), self._logits(levels - 2, cluster_C, query_D)
        return sigmoid(label_C) * sigmoid(above_C)

    def _products(self, level: int, query_QD: Vectors, rows_NE: Vectors) -> Vectors:
        products_QN: Vectors = query_QD[:, self._parts[level]] @ rows_NE.T
        products_QN[np.isnan(products_QN)] = -np.inf
        return products_QN


def sigmoid(logits: NDArray[np.floating[Any]]) -> Scores:
    """Return σ of each number in float64, precise at both ends."""
    values = logits.astype(np.float64)
    small = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1.0, small) / (1.0 + small))


def best(score_C: NDArray[np.floating[Any]], node_C: Rows, count: int) -> Rows:
    """Return the places of the `count` largest scores, best first; equal scores in the order of their nodes."""
    if count >= len(score_C):
        return np.lexsort((node_C, -score_C))
    threshold = np.partition(score_C, -count)[-count]
    place_S = np.flatnonzero(score_C >= threshold)
    return place_S[np.lexsort((node_C[place_S], -score_C[place_S]))[:count]]


def _check_rows(rows: Sequence[Vectors]) -> None:
    for rows_NE in rows:
        if rows_NE.ndim != 2 or not rows_NE.size:
            raise BadInput(f"an index needs vectors of shape (nodes, width) at each level, not {rows_NE.shape}")


def _check_levels(rows: Sequence[Vectors], tree: LabelTree, shortlist: Sequence[int]) -> None:
    _check_rows(rows)
    if tuple(len(rows_NE) for rows_NE in rows) != tree.sizes:
        raise BundleError(
            f"the levels have {[len(rows_NE) for rows_NE in rows]} rows, but the label tree has {list(tree.sizes)} "
            "nodes. Export the bundle again."
        )
    if len(shortlist) != tree.levels - 1 or min(shortlist) < 1:
        raise BundleError(
            f"the shortlists are {list(shortlist)}; a tree of {tree.levels} levels needs {tree.levels - 1} of at least "
            "1. Export the bundle again."
        )
