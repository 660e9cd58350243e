"""Nearest neighbours: a label's score is the sum of similarity^power over the nearest training queries that have it."""

from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.peers.features import Features
from benchmarks.peers.process import Peer, PeerTask, best_first, run

QUERIES_PER_BLOCK = 256


class Neighbours(Peer):
    """Settings: `neighbours`, the number of training queries; `power`, the exponent of their similarities."""

    def fit(self, task: PeerTask) -> None:
        """Store the vectors and labels of the training queries."""
        self.features = Features()
        self.train_FN = self.features.fit(task.train_texts).T.tocsr()
        self.positives_NL = task.positives_NL

    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Rank the labels of the nearest training queries by the sum of similarities."""
        rankings: list[list[int]] = []
        for start in range(0, len(texts), QUERIES_PER_BLOCK):
            similar_QN = self.features.transform(texts[start : start + QUERIES_PER_BLOCK]) @ self.train_FN
            votes_QL = self._nearest(similar_QN) @ self.positives_NL
            for row, (first, end) in enumerate(zip(votes_QL.indptr, votes_QL.indptr[1:], strict=False)):
                depth = int(depth_Q[start + row])
                rankings.append(best_first(votes_QL.data[first:end], votes_QL.indices[first:end], depth))
        return rankings

    def _nearest(self, similar_QN: Any) -> Any:
        """Return the matrix with only the largest values of each row, raised to the power."""
        rows, columns, values, count = [], [], [], self.settings["neighbours"]
        for row, (first, end) in enumerate(zip(similar_QN.indptr, similar_QN.indptr[1:], strict=False)):
            value, column = similar_QN.data[first:end], similar_QN.indices[first:end]
            nearest = np.argpartition(-value, min(count, len(value)) - 1)[:count] if len(value) else column
            rows.append(np.full(len(nearest), row))
            columns.append(column[nearest])
            values.append(value[nearest] ** self.settings["power"])
        where = np.concatenate(rows), np.concatenate(columns)
        return sp.csr_matrix((np.concatenate(values), where), similar_QN.shape)


if __name__ == "__main__":
    run(Neighbours)
