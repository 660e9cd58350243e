"""TF-IDF profiles: a label's vector is that of its text plus the mean direction of its training queries; cosine."""

from typing import Any

from sklearn.preprocessing import normalize

from benchmarks.peers.features import Features
from benchmarks.peers.process import Peer, PeerTask, best_first, run

QUERIES_PER_BLOCK = 256


class Profiles(Peer):
    """One vector per label; no settings."""

    def fit(self, task: PeerTask) -> None:
        """Add the vectors of text and training queries of each label."""
        self.features = Features()
        train_NF = self.features.fit(task.train_texts)
        text_LF = self.features.transform(task.label_texts)
        queries_LF = normalize(task.positives_NL.T @ train_NF)
        self.profile_FL = normalize(text_LF + queries_LF).T.tocsr()

    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Rank labels by their cosine with the query."""
        rankings: list[list[int]] = []
        for start in range(0, len(texts), QUERIES_PER_BLOCK):
            scores_QL = self.features.transform(texts[start : start + QUERIES_PER_BLOCK]) @ self.profile_FL
            for row, (first, end) in enumerate(zip(scores_QL.indptr, scores_QL.indptr[1:], strict=False)):
                depth = int(depth_Q[start + row])
                rankings.append(best_first(scores_QL.data[first:end], scores_QL.indices[first:end], depth))
        return rankings


if __name__ == "__main__":
    run(Profiles)
