"""An index over the principal directions of the label vectors: what is near in all is near in these few.

Which of the candidates are best is decided by their whole vectors (`rescore`), so nothing of a score is lost; only a
label that the few directions put far down could be missed, and export measures that with the rest of recall.

Suffixes: Q queries, K results, C candidates, D width of a vector, W directions.
"""

import numpy as np

from retrieval.search.distinct_vectors import Scored
from retrieval.search.indexes import Rows, VectorIndex, Vectors, checked


class NarrowIndex:
    """An index of vectors [L, W] that is asked with vectors [Q, D]."""

    def __init__(self, index: VectorIndex, directions_DW: Vectors) -> None:
        """`directions_DW` have unit length and stand at right angles, so that inner products are kept."""
        self.index, self.directions_DW = index, directions_DW
        self.size, self.dim, self.full_scans = index.size, int(directions_DW.shape[0]), index.full_scans

    def close(self) -> None:
        """Stop the index's threads."""
        self.index.close()

    def search(self, query_QD: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Rows near each query, the nearest first, and inner products along the directions alone. Raises BadInput."""
        return self.index.search(checked(query_QD, k, self.dim) @ self.directions_DW, k)


def to_rescore(k: int, index: VectorIndex, effort: int | None) -> int:
    """How many candidates have to be compared in full so that the k best are among them; docs/decisions/0031."""
    if isinstance(index, NarrowIndex) and effort is not None:
        return max(3 * k + 18, effort // 3)
    return k + 16  # equal scores around place k must all be seen to be ordered by row


def rescore(query_QD: Vectors, rows_QC: Rows, vectors_LD: Vectors, dual_dim: int, k: int) -> Scored:
    """The k best candidates by exact score, equal scores in the order of their rows; and the two shares of each."""
    label_QCD, shares_2QC = vectors_LD[rows_QC], np.empty((2, *rows_QC.shape))
    for share_QC, half in zip(shares_2QC, (slice(None, dual_dim), slice(dual_dim, None)), strict=True):
        np.matmul(label_QCD[:, :, half], query_QD[:, half, None], out=share_QC[:, :, None])
    scores_QC = shares_2QC[0] + shares_2QC[1]
    best_QK = (np.arange(len(rows_QC))[:, None], np.lexsort((rows_QC, -scores_QC))[:, :k])
    return rows_QC[best_QK], scores_QC[best_QK], *shares_2QC[:, *best_QK]
