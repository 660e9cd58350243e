"""fastText's supervised classifier: averaged vectors of words, bigrams and character n-grams; hierarchical softmax."""

import tempfile
from pathlib import Path
from typing import Any

import fasttext  # type: ignore[import-not-found]

from benchmarks.peers.process import Peer, PeerTask, run

PREFIX = "__label__"


class FastText(Peer):
    """Settings: arguments of fasttext.train_supervised. Its `ova` loss costs a step over all labels per query."""

    def fit(self, task: PeerTask) -> None:
        """Train on a line per query: its labels as numbers, then its text."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.txt"
            write_lines(path, task)
            self.model = fasttext.train_supervised(str(path), thread=self.threads, verbose=0, seed=0, **self.settings)

    def rank(self, texts: list[str], depth_Q: Any) -> list[list[int]]:
        """Rank the labels that have a training query."""
        rankings = []
        for text, depth in zip(texts, depth_Q, strict=True):
            labels, _ = self.model.predict(plain(text), k=int(depth))
            rankings.append([int(label.removeprefix(PREFIX)) for label in labels])
        return rankings


def write_lines(path: Path, task: PeerTask) -> None:
    """Write the training file; queries without a label are left out."""
    positives_NL = task.positives_NL
    with path.open("w", encoding="utf-8") as file:
        for row, text in enumerate(task.train_texts):
            labels = positives_NL.indices[positives_NL.indptr[row] : positives_NL.indptr[row + 1]]
            if len(labels):
                file.write(" ".join(f"{PREFIX}{label}" for label in labels) + f" {plain(text)}\n")


def plain(text: str) -> str:
    """Return the text in lower case and on one line, without fastText's label prefix."""
    return " ".join(text.lower().replace(PREFIX, " ").split())


if __name__ == "__main__":
    run(FastText)
