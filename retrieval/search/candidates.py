"""Find candidates in the index, in all vectors, or in the vectors that a filter allows.

With a filter, the cheaper of two ways is used. Few allowed labels are compared one by one. For many, the index is
searched for so many candidates that enough of them should be allowed; queries with too few are then answered the first
way. No Python code runs per candidate.

If labels share nodes of the index, each node is represented by its first allowed label.

Suffixes: Q queries, C candidates, S allowed labels, L labels, N nodes, D vector width.
"""

import math
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


class Candidates:
    """Find candidates for the queries of one bundle.

    `exact` holds every label. `index` holds the same rows, or with `nodes` one vector per node.
    """

    def __init__(self, index: VectorIndex, exact: ExactIndex, nodes: Nodes | None = None) -> None:
        self.index, self._exact, self._nodes = index, exact, nodes
        self._among: WeakKeyDictionary[Allowed, Nodes] = WeakKeyDictionary()  # by compiled filter
        self._lock = Lock()

    def close(self) -> None:
        """Stop the threads of the index."""
        self.index.close()

    def nodes(self, allowed: Allowed | None = None) -> Nodes | None:
        """Return the allowed labels of each node; None if every label has its own node."""
        if self._nodes is None or allowed is None:
            return self._nodes
        with self._lock:
            found = self._among.get(allowed)
        if found is None:
            found = self._nodes.among(allowed.mask_L)
            with self._lock:
                self._among[allowed] = found
        return found

    def find(self, query_QD: Vectors, wanted: int, effort: int | None, allowed: Allowed | None = None) -> Rows:
        """Return up to `wanted` candidate rows per query [Q, C], best first.

        `effort` is the number of candidates that the index has to examine for its recall; None: compare all labels.
        """
        if allowed is not None and allowed.count < self._exact.size:
            if not allowed.count:
                return np.empty((len(query_QD), 0), np.int64)
            return self._find_among(query_QD, wanted, effort, allowed)
        wanted = min(wanted, self.index.size)
        if effort is None:
            rows_N = None if self._nodes is None else self._nodes.representatives
            return self._exact.search(query_QD, wanted, rows_N)[0]
        place_QC = self.index.search(query_QD, max(wanted, effort))[0][:, :wanted]
        return place_QC if self._nodes is None else self._nodes.first_rows(place_QC)

    def _find_among(self, query_QD: Vectors, wanted: int, effort: int | None, allowed: Allowed) -> Rows:
        nodes = self.nodes(allowed)
        mask_N, rows_S = (allowed.mask_L, allowed.rows_R) if nodes is None else (nodes.used_N, nodes.representatives)
        wanted, share = min(wanted, len(rows_S)), len(rows_S) / self.index.size
        # The k-th allowed label is about the (k/share)-th of all labels, so the index must be accurate to that depth.
        asked = min(self.index.size, math.ceil(max(effort or 0, SLACK * wanted) / share))
        if effort is None or self.compares_each(len(query_QD), asked, len(rows_S)):
            return self._exact.search(query_QD, wanted, rows_S)[0]
        place_QC, _ = self.index.search(query_QD, asked)
        place_QC, enough_Q = _first(place_QC, mask_N[place_QC], wanted)
        short_Q = ~enough_Q
        if nodes is not None:
            place_QC[short_Q] = nodes.node_L[rows_S[0]]  # overwritten below; an unused node has no first row
            place_QC = nodes.first_rows(place_QC)
        if short_Q.any():
            place_QC[short_Q] = self._exact.search(query_QD[short_Q], wanted, rows_S)[0]
        return place_QC

    @staticmethod
    def compares_each(queries: int, asked: int, rows: int) -> bool:
        """Return whether comparing `rows` allowed labels is cheaper than searching the index for `asked` candidates."""
        return rows * (COST_PER_ROW + queries) <= queries * asked * COST_PER_CANDIDATE


def _first(place_QC: Rows, allowed_QC: np.ndarray, wanted: int) -> tuple[Rows, np.ndarray]:
    """Return the first `wanted` allowed candidates of each query, and which queries have that many."""
    order_QC = np.argsort(~allowed_QC, axis=1, kind="stable")[:, :wanted]
    return np.take_along_axis(place_QC, order_QC, 1), allowed_QC.sum(axis=1) >= wanted
