"""Omikuji's partitioned label trees: Parabel (balanced binary) and Bonsai (wide, shallow, unbalanced)."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import omikuji

from benchmarks.peers.features import Features
from benchmarks.peers.process import Peer, PeerTask, run


class Trees(Peer):
    """Settings: `beam`, and any hyper-parameter of omikuji.Model by its name."""

    def fit(self, task: PeerTask) -> None:
        """Grow the trees."""
        self.features = Features()
        train_NF = self.features.fit(task.train_texts)
        chosen = omikuji.Model.default_hyper_param()
        for name, value in self.settings.items():
            if name != "beam":
                setattr(chosen, name, value)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.txt"
            write_xmc(path, train_NF, task.positives_NL)
            self.model = omikuji.Model.train_on_data(str(path), chosen, self.threads)
        self.model.init_prediction_thread_pool(1)

    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """A beam search down every tree, one query at a time, which is all the binding offers."""
        asked_QF = self.features.transform(texts)
        found = []
        for row, (first, end) in enumerate(zip(asked_QF.indptr, asked_QF.indptr[1:], strict=False)):
            pairs = list(zip(asked_QF.indices[first:end].tolist(), asked_QF.data[first:end].tolist(), strict=True))
            answers = self.model.predict(pairs, self.settings["beam"], int(depth_Q[row]))
            found.append([int(label) for label, _ in answers])
        return found


def write_xmc(path: Path, train_NF: Any, positives_NL: Any) -> None:
    """The one format omikuji reads: a line of counts, then `labels feature:value …` a row, features rising."""
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
