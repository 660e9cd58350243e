"""PECOS XR-Linear: a tree of label clusters (label vectors are sums of their positives), a linear ranker per node."""

from typing import Any

from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xlinear.model import XLinearModel

from benchmarks.peers.features import Features
from benchmarks.peers.process import Peer, PeerTask, best_first, run


class XRLinear(Peer):
    """Settings: `beam`; the others are defaults of PECOS."""

    def fit(self, task: PeerTask) -> None:
        """Cluster the labels, then train the rankers."""
        self.features = Features()
        train_NF = self.features.fit(task.train_texts)
        label_LF = LabelEmbeddingFactory.create(task.positives_NL, train_NF, method="pifa", threads=self.threads)
        tree = Indexer.gen(label_LF, indexer_type="hierarchicalkmeans", threads=self.threads)
        self.model = XLinearModel.train(train_NF, task.positives_NL, C=tree, threads=self.threads)

    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Run a beam search in the tree with the greatest depth of all queries; PECOS has no depth per query."""
        query_QF, beam = self.features.transform(texts), self.settings["beam"]
        scores_QL = self.model.predict(query_QF, only_topk=int(depth_Q.max()), beam_size=beam, threads=1).tocsr()
        return [
            best_first(scores_QL.data[first:end], scores_QL.indices[first:end], int(depth))
            for depth, first, end in zip(depth_Q, scores_QL.indptr, scores_QL.indptr[1:], strict=False)
        ]


if __name__ == "__main__":
    run(XRLinear)
