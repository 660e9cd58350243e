"""Find candidates in the index, in all vectors, or in the vectors that a filter allows.

With a filter, the cheaper of two ways is used. Few allowed labels are compared one by one. For many, the index is
searched for so many candidates that enough of them should be allowed; queries with too few are then answered the first
way. No Python code runs per candidate.

If labels share nodes of the index, each node is represented by its first allowed label.

Suffixes: Q queries, C candidates, S allowed labels, L labels, N nodes, D vector width.
"""

import math
from collections.abc import Callable
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np

from retrieval.search.attributes import Allowed
from retrieval.search.distinct_vectors import Nodes
from retrieval.search.indexes import ExactIndex, Rows, VectorIndex, Vectors

# Costs in units of one inner product with a row that is in the processor's cache; measured in docs/decisions/0023.
COST_PER_ROW = 10  # to load it, once for all queries
COST_PER_CANDIDATE = 150  # of the graph: its neighbours are scattered over memory
SLACK = 2  # allowed labels are not evenly distributed


def scan_is_cheaper(queries: int, candidates: int, rows: int) -> bool:
    """Return whether comparing `rows` allowed labels is cheaper than searching the index for `candidates`."""
    return rows * (COST_PER_ROW + queries) <= queries * candidates * COST_PER_CANDIDATE


class Candidates:
    """Find candidates for the queries of one bundle.

    `exact` contains every label. `index` contains the same rows, or with `nodes` one vector per node. `prefer_scan`
    decides as `scan_is_cheaper` does. An `index` that is exact compares all labels itself.
    """

    def __init__(
        self,
        index: VectorIndex,
        exact: ExactIndex,
        nodes: Nodes | None = None,
        prefer_scan: Callable[[int, int, int], bool] = scan_is_cheaper,
    ) -> None:
        self.index, self._exact, self._nodes, self._prefer_scan = index, exact, nodes, prefer_scan
        self._allowed_nodes: WeakKeyDictionary[Allowed, Nodes] = WeakKeyDictionary()  # by compiled filter
        self._lock = Lock()

    def close(self) -> None:
        """Stop the threads of the index."""
        self.index.close()

    def nodes(self, allowed: Allowed | None = None) -> Nodes | None:
        """Return the allowed labels of each node; None if every label has its own node."""
        if self._nodes is None or allowed is None:
            return self._nodes
        with self._lock:
            nodes = self._allowed_nodes.get(allowed)
        if nodes is None:
            nodes = self._nodes.among(allowed.mask_L)
            with self._lock:
                self._allowed_nodes[allowed] = nodes
        return nodes

    def find(self, query_QD: Vectors, count: int, ef_search: int | None, allowed: Allowed | None = None) -> Rows:
        """Return up to `count` candidate rows per query [Q, C], best first.

        `ef_search` is the number of candidates that the index must examine for its recall; None: compare all labels.
        """
        if allowed is not None and allowed.count < self._exact.size:
            if not allowed.count:
                return np.empty((len(query_QD), 0), np.int64)
            return self._find_allowed(query_QD, count, ef_search, allowed)
        count = min(count, self.index.size)
        if (ef_search is None and not self.index.is_exact) or self._is_too_deep(max(count, ef_search or 0)):
            rows_N = None if self._nodes is None else self._nodes.representatives
            return self._exact.search(query_QD, count, rows_N)[0]
        node_QC = self.index.search(query_QD, max(count, ef_search or 0))[0][:, :count]
        return node_QC if self._nodes is None else self._nodes.first_rows(node_QC)

    def _find_allowed(self, query_QD: Vectors, count: int, ef_search: int | None, allowed: Allowed) -> Rows:
        nodes = self.nodes(allowed)
        mask_N, rows_S = (allowed.mask_L, allowed.rows_R) if nodes is None else (nodes.used_N, nodes.representatives)
        count, share = min(count, len(rows_S)), len(rows_S) / self.index.size
        # The k-th allowed label is about the (k/share)-th of all labels, so the index must be accurate to that depth.
        depth = min(self.index.size, math.ceil(max(ef_search or 0, SLACK * count) / share))
        too_deep = self._is_too_deep(depth)
        if ef_search is None or too_deep or self._prefer_scan(len(query_QD), depth, len(rows_S)):
            return self._exact.search(query_QD, count, rows_S)[0]
        node_QC, _ = self.index.search(query_QD, depth)
        node_QC, enough_Q = _first_allowed(node_QC, mask_N[node_QC], count)
        short_Q = ~enough_Q
        if nodes is not None:
            node_QC[short_Q] = nodes.node_L[rows_S[0]]  # overwritten below; an unused node has no first row
            node_QC = nodes.first_rows(node_QC)
        if short_Q.any():
            node_QC[short_Q] = self._exact.search(query_QD[short_Q], count, rows_S)[0]
        return node_QC

    def _is_too_deep(self, depth: int) -> bool:
        """Return whether the index cannot return so many candidates."""
        return self.index.max_results is not None and min(depth, self.index.size) > self.index.max_results


def _first_allowed(node_QC: Rows, allowed_QC: np.ndarray, count: int) -> tuple[Rows, np.ndarray]:
    """Return the first `count` allowed candidates of each query, and which queries have that many."""
    order_QC = np.argsort(~allowed_QC, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(node_QC, order_QC, 1), allowed_QC.sum(axis=1) >= count
