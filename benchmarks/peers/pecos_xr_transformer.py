"""PECOS XR-Transformer: fine-tunes a transformer level by level, then trains rankers on its vectors and on TF-IDF."""

from typing import Any

from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xtransformer.model import XTransformer
from pecos.xmc.xtransformer.module import MLProblemWithText

from benchmarks.peers.features import Features
from benchmarks.peers.process import Peer, PeerTask, best_first, run


class XRTransformer(Peer):
    """Settings: `model`, folder of a pretrained encoder; `beam`; `tokens` per text; `matcher`, its training."""

    def fit(self, task: PeerTask) -> None:
        """Cluster the labels, fine-tune the encoder on the levels of the tree, and train the rankers."""
        self.features = Features()
        train_NF = self.features.fit(task.train_texts)
        label_LF = LabelEmbeddingFactory.create(task.positives_NL, train_NF, method="pifa", threads=self.threads)
        tree = Indexer.gen(label_LF, indexer_type="hierarchicalkmeans", threads=self.threads)
        matcher = {"model_shortcut": self.settings["model"], **self.settings["matcher"]}
        parameters = XTransformer.TrainParams.from_dict({"matcher_params_chain": matcher}, recursive=True)
        problem = MLProblemWithText(task.train_texts, task.positives_NL, X_feat=train_NF)
        search = XTransformer.PredParams.from_dict(
            {"matcher_params_chain": {"truncate_length": self.settings["tokens"]}}, recursive=True
        )
        self.model = XTransformer.train(problem, clustering=tree, train_params=parameters, pred_params=search)

    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Run a beam search in the tree with the greatest depth of all queries; PECOS has no depth per query."""
        scores_QL = self.model.predict(
            texts, X_feat=self.features.transform(texts), only_topk=int(depth_Q.max()),
            beam_size=self.settings["beam"], batch_gen_workers=1, threads=1,
        ).tocsr()  # fmt: skip
        return [
            best_first(scores_QL.data[first:end], scores_QL.indices[first:end], int(depth))
            for depth, first, end in zip(depth_Q, scores_QL.indptr, scores_QL.indptr[1:], strict=False)
        ]


if __name__ == "__main__":
    run(XRTransformer)
