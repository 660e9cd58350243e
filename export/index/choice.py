"""Choose the width of the projection: the smallest with which the best labels are among the candidates.

No graph is needed for this: the candidates of a perfect graph are the labels with the largest scores in the projection.
So the loss of the projection is measured over all labels, for some queries, before a graph is built.

Suffixes: Q queries, K results, C candidates, L labels, N distinct vectors, B labels of a block, D vector width, W width
of the widest projection, P widths to compare.
"""

from collections.abc import Sequence

import numpy as np

from export.geometry import LABELS_PER_CHUNK
from export.index.recall import MIN_RECALL, RECALL_TARGET, recall_at
from retrieval.bundle.facts import SMALL_K
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.indexes import Rows, Vectors, top_columns
from retrieval.search.pca_index import rescore
from retrieval.system.progress import Progress

WIDTHS = (48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768)  # multiples of 16, which SIMD code processes fastest
EF_LIMIT = 512  # that the recall must be possible with
RESCORED = 3  # a search compares a third of its ef_search as whole vectors, see retrieval.search.pca_index.to_rescore
QUERIES_PER_RESCORE = 64


class _Best:
    """The rows with the largest scores so far, per query."""

    def __init__(self, queries: int, count: int) -> None:
        self.rows_QK, self._scores_QK = np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32)
        self._count = count

    def add(self, scores_QB: Vectors, row_B: Rows) -> None:
        """Add the scores of a block of rows."""
        column_QK = top_columns(scores_QB, self._count)
        self.rows_QK = np.concatenate([self.rows_QK, row_B[column_QK]], axis=1)
        self._scores_QK = np.concatenate([self._scores_QK, np.take_along_axis(scores_QB, column_QK, 1)], axis=1)
        keep_QK = top_columns(self._scores_QK, self._count)
        self.rows_QK = np.take_along_axis(self.rows_QK, keep_QK, 1)
        self._scores_QK = np.take_along_axis(self._scores_QK, keep_QK, 1)


def candidate_recalls(
    vectors_LD: LabelVectors, row_N: Rows, directions_DW: Vectors, query_QD: Vectors, dual_dim: int,
    count: int, progress: Progress,
) -> dict[int, float]:  # fmt: skip
    """Return the share of the 10 best labels among the best `count` in the projection, for each width to compare.

    All widths are measured in one pass over the labels `row_N`: the scores of a width are those of the width before it
    plus the part of the columns between. Memory is bounded by one chunk.
    """
    widths = [width for width in WIDTHS if width < directions_DW.shape[1]] + [directions_DW.shape[1]]
    best, candidates = _Best(len(query_QD), SMALL_K), [_Best(len(query_QD), count) for _ in widths]
    query_QW = query_QD @ directions_DW
    for start in range(0, len(row_N), LABELS_PER_CHUNK):
        row_B = row_N[start : start + LABELS_PER_CHUNK]
        block_BD = np.asarray(vectors_LD[row_B], np.float32)
        best.add(query_QD @ block_BD.T, row_B)
        block_BW, scores_QB = block_BD @ directions_DW, np.zeros((len(query_QD), len(row_B)), np.float32)
        for before, width, found in zip([0, *widths[:-1]], widths, candidates, strict=True):
            scores_QB += query_QW[:, before:width] @ block_BW[:, before:width].T
            found.add(scores_QB, row_B)
        progress(start + len(row_B), len(row_N))
    best_QK = _scores(query_QD, best.rows_QK, vectors_LD, dual_dim)
    return {
        width: recall_at(SMALL_K, _scores(query_QD, found.rows_QK, vectors_LD, dual_dim), best_QK)
        for width, found in zip(widths, candidates, strict=True)
    }


def choose_width(
    vectors_LD: LabelVectors, row_N: Rows, directions_DW: Vectors, default_QD: Vectors, other_QD: Sequence[Vectors],
    dual_dim: int, progress: Progress,
) -> int:  # fmt: skip
    """Return the smallest width that finds the best labels of the queries `default_QD` and of each of `other_QD`.

    They are scaled to the default weight and to others. If no width does, the widest is returned.
    """
    demands = [(default_QD, RECALL_TARGET), *((query_QD, MIN_RECALL) for query_QD in other_QD)]
    widest, width = int(directions_DW.shape[1]), 0
    for done, (query_QD, least) in enumerate(demands):
        recalls = candidate_recalls(
            vectors_LD, row_N, directions_DW, query_QD, dual_dim, EF_LIMIT // RESCORED,
            lambda at, of, done=done: progress(done * of + at, len(demands) * of),  # type: ignore[misc]  # a default binds the loop's value
        )  # fmt: skip
        width = max(width, next((one for one, recall in recalls.items() if recall >= least), widest))
    return width


def _scores(query_QD: Vectors, rows_QC: Rows, vectors_LD: LabelVectors, dual_dim: int) -> np.ndarray:
    """Return the exact scores of the 10 best of some rows, best first."""
    starts = range(0, max(len(query_QD), 1), QUERIES_PER_RESCORE)
    blocks = [slice(start, start + QUERIES_PER_RESCORE) for start in starts]
    return np.concatenate([rescore(query_QD[one], rows_QC[one], vectors_LD, dual_dim, SMALL_K)[1] for one in blocks])
