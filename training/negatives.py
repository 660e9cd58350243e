"""Hard negatives: for each training query, the nearest labels that are not true (ANCE; UniDEC, section 3).

Shapes: N training queries, L labels, D width of the dual encoder's half, H mined negatives of a query.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from retrieval.index import ExactIndex, HnswIndex, VectorIndex
from training.data.ragged import Ragged

EXACT_LABELS = 200_000  # above this many labels the graph is quicker to build than the products are to compute
QUERIES_A_BLOCK = 2048


def mine_hard_negatives(
    query_ND: NDArray[np.float32],
    label_LD: NDArray[np.float32],
    not_negative: Ragged,
    count: int,
    progress: Callable[[int, int], object] | None = None,
) -> NDArray[np.int32]:
    """The `count` nearest labels of each query that do not stand in `not_negative` (its true and excluded labels).

    Returns [N, count] int32, best first; −1 pads a query for which fewer exist.
    """
    index = nearest_labels(label_LD)
    mined_NH = np.full((len(query_ND), count), -1, np.int32)
    # Queries with about as many labels to pass over go together, so that few are asked for more than they need.
    order = np.argsort(not_negative.lengths, kind="stable")
    for start in range(0, len(order), QUERIES_A_BLOCK):
        rows = order[start : start + QUERIES_A_BLOCK]
        passed_over = not_negative.take(rows)
        found, _ = index.search(query_ND[rows], count + int(passed_over.lengths.max(initial=0)))
        mined_NH[rows] = first_allowed(found, passed_over, count)
        if progress is not None:
            progress(start + len(rows), len(order))
    return mined_NH


def nearest_labels(label_LD: NDArray[np.float32]) -> VectorIndex:
    """Exact search up to a size, HNSW beyond."""
    if len(label_LD) <= EXACT_LABELS:
        return ExactIndex(label_LD)
    return HnswIndex.build(label_LD, m=16, ef_construction=100, ef=100)


def first_allowed(found_QK: NDArray[np.int64], passed_over: Ragged, count: int) -> NDArray[np.int32]:
    """The first `count` of each row that do not stand in the same row of `passed_over`, padded with −1."""
    shape = found_QK.shape
    found = Ragged(found_QK.ravel(), np.arange(shape[0] + 1, dtype=np.int64) * shape[1])
    forbidden_QK = found.overlap(passed_over).reshape(shape)
    # A stable sort on the flag alone moves the allowed ones to the front and keeps their order.
    order_QK = np.argsort(forbidden_QK, axis=1, kind="stable")[:, :count]
    kept_QH = np.where(
        np.take_along_axis(forbidden_QK, order_QK, axis=1), -1, np.take_along_axis(found_QK, order_QK, axis=1)
    )
    padded_QH = np.full((shape[0], count), -1, np.int32)
    padded_QH[:, : kept_QH.shape[1]] = kept_QH
    return padded_QH
