"""An index of label vectors projected to their principal directions, and exact re-ranking with whole vectors.

The projected index only finds candidates. `rescore` ranks them by whole vectors, so scores are exact. A label that is
far away in the projection can be missed; export measures this as part of the recall.

Suffixes: Q queries, K results, C candidates, D vector width, L labels, W width of the projection.
"""

import numpy as np

from retrieval.quantized_vectors import LabelVectors
from retrieval.search.distinct_vectors import ScoredRows
from retrieval.search.indexes import Rows, VectorIndex, Vectors, checked


class PcaIndex:
    """An index of projected vectors [L, W] that is searched with whole vectors [Q, D]."""

    is_exact = False

    def __init__(self, index: VectorIndex, projection_DW: Vectors) -> None:
        """Combine an index and its projection, whose columns are orthonormal, so that it keeps inner products."""
        self.index, self.projection_DW = index, projection_DW
        self.size, self.dim, self.full_scans = index.size, int(projection_DW.shape[0]), index.full_scans
        self.max_results = index.max_results

    def close(self) -> None:
        """Stop the index's threads."""
        self.index.close()

    def search(self, query_QD: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return the k nearest rows of each query, and their inner products in the projection. Raises BadInput."""
        return self.index.search(checked(query_QD, k, self.dim) @ self.projection_DW, k)


def to_rescore(k: int, index: VectorIndex, ef_search: int | None) -> int:
    """Return the number of candidates to compare as whole vectors for the k best; see docs/decisions/0031."""
    if isinstance(index, PcaIndex) and ef_search is not None:
        return max(3 * k + 18, ef_search // 3)
    return k + 16  # all labels with the k-th score must be compared, since equal scores are ranked by row


def rescore(query_QD: Vectors, rows_QC: Rows, vectors_LD: LabelVectors, dual_dim: int, k: int) -> ScoredRows:
    """Return the k best candidates by exact score with the scores of both halves; equal scores are ranked by row."""
    label_QCD, halves_2QC = vectors_LD[rows_QC], np.empty((2, *rows_QC.shape))
    for scores_QC, half in zip(halves_2QC, (slice(None, dual_dim), slice(dual_dim, None)), strict=True):
        np.matmul(label_QCD[:, :, half], query_QD[:, half, None], out=scores_QC[:, :, None])
    scores_QC = halves_2QC[0] + halves_2QC[1]
    best_QK = (np.arange(len(rows_QC))[:, None], np.lexsort((rows_QC, -scores_QC))[:, :k])
    return rows_QC[best_QK], scores_QC[best_QK], *halves_2QC[:, *best_QK]
