"""Omikuji's partitioned label trees: Parabel (balanced binary) and Bonsai (wide, shallow, unbalanced)."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import omikuji

from benchmarks.peers.features import Features
from benchmarks.peers.process import Peer, PeerTask, run


class Trees(Peer):
    """Settings: `beam`, and hyper-parameters of omikuji.Model by name."""

    def fit(self, task: PeerTask) -> None:
        """Train the trees."""
        self.features = Features()
        train_NF = self.features.fit(task.train_texts)
        parameters = omikuji.Model.default_hyper_param()
        for name, value in self.settings.items():
            if name != "beam":
                setattr(parameters, name, value)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.txt"
            write_xmc(path, train_NF, task.positives_NL)
            self.model = omikuji.Model.train_on_data(str(path), parameters, self.threads)
        self.model.init_prediction_thread_pool(1)

    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Run a beam search in every tree, one query at a time: omikuji has no batch search."""
        query_QF = self.features.transform(texts)
        rankings = []
        for row, (first, end) in enumerate(zip(query_QF.indptr, query_QF.indptr[1:], strict=False)):
            pairs = list(zip(query_QF.indices[first:end].tolist(), query_QF.data[first:end].tolist(), strict=True))
            answers = self.model.predict(pairs, self.settings["beam"], int(depth_Q[row]))
            rankings.append([int(label) for label, _ in answers])
        return rankings


def write_xmc(path: Path, train_NF: Any, positives_NL: Any) -> None:
    """Write omikuji's input format: a line of counts, then `labels feature:value …` per row, features ascending."""
    train_NF.sort_indices()
    rows = np.flatnonzero(np.diff(positives_NL.indptr))
    with path.open("w", encoding="ascii") as file:
        file.write(f"{len(rows)} {train_NF.shape[1]} {positives_NL.shape[1]}\n")
        for row in rows:
            features = slice(train_NF.indptr[row], train_NF.indptr[row + 1])
            labels = positives_NL.indices[positives_NL.indptr[row] : positives_NL.indptr[row + 1]]
            pairs = zip(train_NF.indices[features], train_NF.data[features], strict=True)
            file.write(",".join(map(str, labels)) + " " + " ".join(f"{i}:{v:.6g}" for i, v in pairs) + "\n")


if __name__ == "__main__":
    run(Trees)
