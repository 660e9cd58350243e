"""Rankings become figures, the same way for every system: excluded labels out, then the metrics of `diptych evaluate`.

Suffixes: Q test queries with a true label, K ranks, L labels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval import metrics
from training.data.dataset import Dataset, Split
from training.data.ragged import Ragged
from training.evaluation import slices as analysis
from training.evaluation.significance import Bootstrap, Estimate

DEPTH = max(metrics.KS)
Figures = dict[str, float]


def write_task(dataset: Dataset, folder: Path) -> None:
    """What a peer's process needs, in files that need only numpy: see benchmarks/peers/process.py.

    Peers learn from train and validation together, since they choose nothing on validation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits, asked = [dataset.split("train"), dataset.split("validation")], dataset.scored("test")
    texts = {
        "train": [text for split in splits for text in split.texts],
        "labels": dataset.label_texts,
        "test": asked.texts,
    }
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    values = np.concatenate([split.labels.values for split in splits])
    lengths = np.concatenate([split.labels.lengths for split in splits])
    depth_Q = DEPTH + asked.exclude.lengths
    np.savez(
        folder / "positives.npz",
        values=values, offsets=Ragged.from_lengths(values, lengths).offsets, depth_Q=depth_Q,
    )  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """Scores rankings of a dataset's test queries; a and b are the propensity's constants."""

    dataset: Dataset
    a: float
    b: float

    @cached_property
    def asked(self) -> Split:
        """The queries a ranking answers, in order; DatasetError when none has a true label."""
        return self.dataset.scored("test")

    @cached_property
    def inverse_propensity_L(self) -> NDArray[np.float64]:
        """1/p from the counts of train and validation together, as in training."""
        splits = self.dataset.split("train"), self.dataset.split("validation")
        counts_L = sum(np.bincount(split.labels.values, minlength=self.dataset.n_labels) for split in splits)
        return metrics.propensities(np.asarray(counts_L), sum(map(len, splits)), self.a, self.b)

    @cached_property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Head, torso, tail and unseen labels, by training positives."""
        counts_L = np.bincount(self.dataset.split("train").labels.values, minlength=self.dataset.n_labels)
        return analysis.frequency_groups(counts_L)

    def figures(self, answers: Sequence[Sequence[int]]) -> Figures:
        """Every metric in percent, and `head R@10` and the like, recall of the group's true labels."""
        ranking_QK = without_excluded(answers, self.asked.exclude)
        figures = metrics.evaluate(ranking_QK, self.asked.labels, self.inverse_propensity_L)
        parts = analysis.by_label_frequency(ranking_QK, self.asked.labels, self.groups)
        return figures | {f"{group} R@{DEPTH}": of[f"R@{DEPTH}"] for group, of in parts.items()}

    def gaps(self, answers: Mapping[str, Sequence[Sequence[int]]], ks: Sequence[int]) -> dict[str, dict[int, Estimate]]:
        """P@k of the unified answers minus each head's alone, in points, by head and k: paired by query."""
        alone = [head for head in answers if head != "unified"]
        if not alone:  # a peer
            return {}
        found = {
            head: metrics.ratios(
                without_excluded(of, self.asked.exclude), self.asked.labels, self.inverse_propensity_L, ks
            )
            for head, of in answers.items()
        }
        drawn = Bootstrap({(head, k): found[head][f"P@{k}"] for head in answers for k in ks})
        return {head: {k: drawn.difference(("unified", k), (head, k)) for k in ks} for head in alone}


def without_excluded(answers: Sequence[Sequence[int]], exclude: Ragged) -> NDArray[np.int64]:
    """The first DEPTH label rows [Q, K] of each answer that its query does not exclude; −1 where there are fewer."""
    ranking_QK = np.full((len(exclude), DEPTH), -1, np.int64)
    for query, (rows, excluded) in enumerate(zip(answers, exclude, strict=True)):
        left_out = set(excluded.tolist())
        kept = [row for row in rows if row >= 0 and row not in left_out][:DEPTH]
        ranking_QK[query, : len(kept)] = kept
    return ranking_QK
