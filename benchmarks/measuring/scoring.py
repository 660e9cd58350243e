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
from retrieval.metrics import Ratio
from training.data.dataset import Dataset, Split
from training.data.ragged import Ragged
from training.evaluation import slices
from training.evaluation.headline import UNIFIED
from training.evaluation.results import EvaluationData, MetricValues
from training.evaluation.significance import Bootstrap, Estimate

DEPTH = max(metrics.KS)
SPARE = 40  # further answers of a peer, so that DEPTH remain without labels that only validation queries have


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
    depth_Q = DEPTH + SPARE + queries.exclude.lengths
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
    def data(self) -> EvaluationData:
        """The test queries as training/evaluation measures them."""
        positives_L = np.bincount(self.dataset.split("train").labels.values, minlength=self.dataset.n_labels)
        return EvaluationData(self.queries, positives_L, self.inverse_propensity_L)

    def metrics(self, answers: Sequence[Sequence[int]]) -> MetricValues:
        """Compute all metrics in percent, and the recall of each label group as `head R@10` etc."""
        return _metrics(self.data, self.ranking(answers))

    def seen_metrics(self, answers: Sequence[Sequence[int]]) -> MetricValues:
        """Compute the same metrics among the labels with a training positive; empty if the test split has no others."""
        return {} if self.data.seen is None else _metrics(self.data.seen, self.ranking(answers, seen=True))

    def ratios(self, answers: Sequence[Sequence[int]], *, seen: bool = False) -> dict[str, Ratio]:
        """Return all metrics but C@k per query, for all labels or among the seen ones."""
        data = self.data.seen if seen and self.data.seen is not None else self.data
        return data.ratios(self.ranking(answers, seen=seen))

    def ranking(self, answers: Sequence[Sequence[int]], *, seen: bool = False) -> NDArray[np.int64]:
        """Return the first DEPTH label rows per query [Q, K] without its excluded labels; `seen`: only seen labels."""
        if not seen:
            return remove_excluded(answers, self.queries.exclude)
        seen_L = self.data.positives_L > 0
        return remove_excluded([[row for row in rows if seen_L[row]] for rows in answers], self.queries.exclude)

    def gaps(self, answers: Mapping[str, Sequence[Sequence[int]]], ks: Sequence[int]) -> dict[str, dict[int, Estimate]]:
        """Compute P@k of the unified ranking minus that of each head, in points, by head and k; paired by query."""
        heads = [head for head in answers if head != UNIFIED]
        if not heads:  # a peer
            return {}
        ratios = {
            head: metrics.ratios(self.ranking(of), self.queries.labels, self.inverse_propensity_L, ks)
            for head, of in answers.items()
        }
        bootstrap = Bootstrap({(head, k): ratios[head][f"P@{k}"] for head in answers for k in ks})
        return {head: {k: bootstrap.difference((UNIFIED, k), (head, k)) for k in ks} for head in heads}


def _metrics(data: EvaluationData, ranking_QK: NDArray[np.int64]) -> MetricValues:
    groups = slices.label_group_ratios(ranking_QK, data.queries.labels, data.label_groups["labels"])
    of_group = slices.percent(groups)
    return data.metrics(ranking_QK) | {f"{group} R@{DEPTH}": of[f"R@{DEPTH}"] for group, of in of_group.items()}


def remove_excluded(answers: Sequence[Sequence[int]], exclude: Ragged) -> NDArray[np.int64]:
    """Return the first DEPTH label rows per query [Q, K] without its excluded labels, padded with −1."""
    ranking_QK = np.full((len(exclude), DEPTH), -1, np.int64)
    for query, (rows, excluded) in enumerate(zip(answers, exclude, strict=True)):
        excluded_rows = set(excluded.tolist())
        ranked = [row for row in rows if row >= 0 and row not in excluded_rows][:DEPTH]
        ranking_QK[query, : len(ranked)] = ranked
    return ranking_QK
