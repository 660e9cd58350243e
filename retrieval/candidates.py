"""Where the best labels are looked for: in the index, in all vectors, or in those alone that a filter allows.

A filter is answered in one of two ways, whichever is cheaper. Few allowed labels are compared one by one, straight from
the memory-mapped vectors. Of many, the index is asked for so many candidates that enough of them are allowed; a query
for which there were not enough after all is answered the first way. No code of Python's runs for each candidate.

Where labels share nodes of the index, a candidate stands for its node: it is the node's first allowed label.

Suffixes: Q queries, C candidates, S allowed labels, L labels, N nodes, D vector width.
"""

import math
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np

from retrieval.attributes import Allowed
from retrieval.index import ExactIndex, Rows, VectorIndex, Vectors
from retrieval.nodes import Nodes

# Costs in units of one inner product with a row that is in the processor's cache; measured in docs/decisions/0023.
COST_OF_A_ROW = 10  # to fetch it, once for all queries
COST_OF_A_CANDIDATE = 150  # of the graph: its neighbours are looked at, all over the memory
SLACK = 2  # allowed ones do not lie evenly


class Candidates:
    """Finds candidates for queries of one bundle.

    The exact index holds every label. The other one holds the same rows, or with `nodes` one vector per node.
    """

    def __init__(self, index: VectorIndex, exact: ExactIndex, nodes: Nodes | None = None) -> None:
        self.index, self._exact, self._nodes = index, exact, nodes
        self._among: WeakKeyDictionary[Allowed, Nodes] = WeakKeyDictionary()  # of the filters that are remembered
        self._lock = Lock()

    def close(self) -> None:
        """Stop the threads of the index."""
        self.index.close()

    def nodes(self, allowed: Allowed | None = None) -> Nodes | None:
        """The allowed labels of each node; None where every label is a node of its own."""
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
        """`wanted` candidate rows of each query [Q, C], best first; C is less where there are no more.

        `effort` is how many candidates the index has to look at to be accurate, None where it cannot be.
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
        # The k-th allowed label is the (k/share)-th of all, and so much farther down the index has to be accurate.
        asked = min(self.index.size, math.ceil(max(effort or 0, SLACK * wanted) / share))
        if effort is None or self.compares_each(len(query_QD), asked, len(rows_S)):
            return self._exact.search(query_QD, wanted, rows_S)[0]
        place_QC, _ = self.index.search(query_QD, asked)
        place_QC, enough_Q = _first(place_QC, mask_N[place_QC], wanted)
        short_Q = ~enough_Q
        if nodes is not None:
            place_QC[short_Q] = nodes.node_L[rows_S[0]]  # overwritten below; an unused node has no first label
            place_QC = nodes.first_rows(place_QC)
        if short_Q.any():
            place_QC[short_Q] = self._exact.search(query_QD[short_Q], wanted, rows_S)[0]
        return place_QC

    @staticmethod
    def compares_each(queries: int, asked: int, rows: int) -> bool:
        """Whether comparing with each of `rows` allowed labels is cheaper than asking the index for `asked`."""
        return rows * (COST_OF_A_ROW + queries) <= queries * asked * COST_OF_A_CANDIDATE


def _first(place_QC: Rows, allowed_QC: np.ndarray, wanted: int) -> tuple[Rows, np.ndarray]:
    """The first `wanted` allowed candidates of each query, and which queries have as many."""
    order_QC = np.argsort(~allowed_QC, axis=1, kind="stable")[:, :wanted]
    return np.take_along_axis(place_QC, order_QC, 1), allowed_QC.sum(axis=1) >= wanted
