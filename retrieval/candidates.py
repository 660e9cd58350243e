"""Where the best labels are looked for: in the index, in all vectors, or in those alone that a filter allows.

A filter is answered in one of two ways, whichever is cheaper. Few allowed labels are compared one by one, straight from
the memory-mapped vectors. Of many, the index is asked for so many candidates that enough of them are allowed; a query
for which there were not enough after all is answered the first way. No code of Python's runs for each candidate.

Suffixes: Q queries, C candidates, S allowed labels, D vector width.
"""

import math

import numpy as np

from retrieval.attributes import Allowed
from retrieval.index import ExactIndex, Rows, VectorIndex, Vectors

# Costs in units of one inner product with a row that is in the processor's cache; measured in docs/decisions/0023.
COST_OF_A_ROW = 10  # to fetch it, once for all queries
COST_OF_A_CANDIDATE = 150  # of the graph: its neighbours are looked at, all over the memory
SLACK = 2  # allowed ones do not lie evenly


class Candidates:
    """Finds candidates for queries of one bundle; both indexes hold the same rows."""

    def __init__(self, index: VectorIndex, exact: ExactIndex) -> None:
        self._index, self._exact = index, exact

    def find(self, query_QD: Vectors, wanted: int, effort: int | None, allowed: Allowed | None = None) -> Rows:
        """`wanted` candidate rows of each query [Q, C], best first; C is less where there are no more.

        `effort` is how many candidates the index has to look at to be accurate, None where it cannot be.
        """
        if allowed is not None and allowed.count < self._index.size:
            return self._among(query_QD, min(wanted, allowed.count), effort, allowed)
        wanted = min(wanted, self._index.size)
        if effort is None:
            return self._exact.search(query_QD, wanted)[0]
        return self._index.search(query_QD, max(wanted, effort))[0][:, :wanted]

    def _among(self, query_QD: Vectors, wanted: int, effort: int | None, allowed: Allowed) -> Rows:
        if not wanted:
            return np.empty((len(query_QD), 0), np.int64)
        share = allowed.count / self._index.size
        # The k-th allowed label is the (k/share)-th of all, and so much farther down the index has to be accurate.
        asked = min(self._index.size, math.ceil(max(effort or 0, SLACK * wanted) / share))
        if effort is None or self.compares_each(len(query_QD), asked, allowed.count):
            return self._exact.search(query_QD, wanted, allowed.rows_R)[0]
        rows_QC, _ = self._index.search(query_QD, asked)
        found_QC, enough_Q = _first(rows_QC, allowed.mask_L[rows_QC], wanted)
        if not enough_Q.all():
            short_Q = ~enough_Q
            found_QC[short_Q] = self._exact.search(query_QD[short_Q], wanted, allowed.rows_R)[0]
        return found_QC

    @staticmethod
    def compares_each(queries: int, asked: int, rows: int) -> bool:
        """Whether comparing with each of `rows` allowed labels is cheaper than asking the index for `asked`."""
        return rows * (COST_OF_A_ROW + queries) <= queries * asked * COST_OF_A_CANDIDATE


def _first(rows_QC: Rows, allowed_QC: np.ndarray, wanted: int) -> tuple[Rows, np.ndarray]:
    """The first `wanted` allowed candidates of each query, and which queries have as many."""
    order_QC = np.argsort(~allowed_QC, axis=1, kind="stable")[:, :wanted]
    return np.take_along_axis(rows_QC, order_QC, 1), allowed_QC.sum(axis=1) >= wanted
