"""Compute metrics of rankings, equally for all systems: remove excluded labels, then as `diptych evaluate`.

Shapes: Q test queries with a true label, K ranks, L labels.
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
from training.evaluation import slices
from training.evaluation.headline import UNIFIED
from training.evaluation.results import MetricValues
from training.evaluation.significance import Bootstrap, Estimate

DEPTH = max(metrics.KS)


def write_task(dataset: Dataset, folder: Path) -> None:
    """Write the input of a peer's process, in files that need only numpy: see benchmarks/peers/process.py.

    Peers train on train and validation together, because they select nothing on validation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits, queries = [dataset.split("train"), dataset.split("validation")], dataset.scored("test")
    texts = {
        "train": [text for split in splits for text in split.texts],
        "labels": dataset.label_texts,
        "test": queries.texts,
    }
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    values = np.concatenate([split.labels.values for split in splits])
    lengths = np.concatenate([split.labels.lengths for split in splits])
    depth_Q = DEPTH + queries.exclude.lengths
    np.savez(
        folder / "positives.npz",
        values=values, offsets=Ragged.from_lengths(values, lengths).offsets, depth_Q=depth_Q,
    )  # fmt: skip


@dataclass(frozen=True)
class Scorer:
    """Compute metrics of rankings of a dataset's test queries; a and b are the constants of the propensity model."""

    dataset: Dataset
    a: float
    b: float

    @cached_property
    def queries(self) -> Split:
        """Return the test queries with a true label, in order. Raises DatasetError if no query has one."""
        return self.dataset.scored("test")

    @cached_property
    def inverse_propensity_L(self) -> NDArray[np.float64]:
        """1/p, from the counts of train and validation together, as in training."""
        splits = self.dataset.split("train"), self.dataset.split("validation")
        counts_L = sum(np.bincount(split.labels.values, minlength=self.dataset.n_labels) for split in splits)
        return metrics.propensities(np.asarray(counts_L), sum(map(len, splits)), self.a, self.b)

    @cached_property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Head, torso, tail and unseen labels, by training positives."""
        counts_L = np.bincount(self.dataset.split("train").labels.values, minlength=self.dataset.n_labels)
        return slices.frequency_groups(counts_L)

    def metrics(self, answers: Sequence[Sequence[int]]) -> MetricValues:
        """Compute all metrics in percent, and the recall of each label group as `head R@10` etc."""
        ranking_QK = remove_excluded(answers, self.queries.exclude)
        values = metrics.evaluate(ranking_QK, self.queries.labels, self.inverse_propensity_L)
        groups = slices.percent(slices.label_group_ratios(ranking_QK, self.queries.labels, self.groups))
        return values | {f"{group} R@{DEPTH}": of[f"R@{DEPTH}"] for group, of in groups.items()}

    def gaps(self, answers: Mapping[str, Sequence[Sequence[int]]], ks: Sequence[int]) -> dict[str, dict[int, Estimate]]:
        """Compute P@k of the unified ranking minus that of each head, in points, by head and k; paired by query."""
        heads = [head for head in answers if head != UNIFIED]
        if not heads:  # a peer
            return {}
        ratios = {
            head: metrics.ratios(
                remove_excluded(of, self.queries.exclude), self.queries.labels, self.inverse_propensity_L, ks
            )
            for head, of in answers.items()
        }
        bootstrap = Bootstrap({(head, k): ratios[head][f"P@{k}"] for head in answers for k in ks})
        return {head: {k: bootstrap.difference((UNIFIED, k), (head, k)) for k in ks} for head in heads}


def remove_excluded(answers: Sequence[Sequence[int]], exclude: Ragged) -> NDArray[np.int64]:
    """Return the first DEPTH label rows per query [Q, K] without its excluded labels, padded with −1."""
    ranking_QK = np.full((len(exclude), DEPTH), -1, np.int64)
    for query, (rows, excluded) in enumerate(zip(answers, exclude, strict=True)):
        excluded_rows = set(excluded.tolist())
        ranked = [row for row in rows if row >= 0 and row not in excluded_rows][:DEPTH]
        ranking_QK[query, : len(ranked)] = ranked
    return ranking_QK
