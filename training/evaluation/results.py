"""Evaluate rankings: the one way from a ranking of labels to metrics.

Validation while training, `diptych evaluate`, report.html and the quality check of `diptych export` all call
`evaluate`. They differ only in the ranker: a model by exact search, or a bundle through its index.

Everything is measured twice: for all labels, and among the labels with a training positive ("seen"), with rankings and
true labels restricted to them. Without a label table, the catalogue has labels that occur only in test rows. They are
likelier to be correct than labels with one positive, and a system that learns only from positives cannot return them.

Shapes: Q queries, L labels, K ranks (best first, −1 where a ranking is shorter).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval import metrics
from retrieval.metrics import KS, FloatArray, Ratio
from training.data.dataset import Split
from training.evaluation import slices
from training.evaluation.headline import UNIFIED
from training.evaluation.ranking import LabelRows
from training.evaluation.scoring import ScoreMix
from training.evaluation.slices import BoolArray, Example

MetricValues = dict[str, float]  # metric: percent
SEEN = "seen "  # prefix of a kind in SliceMetric


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """Queries with true and excluded labels, each label's training positives [L] and inverse propensity [L].

    `repeated_Q` marks the queries that are training queries too, `label_age_L` are the labels' ages in days, NaN if
    unknown (training/data/clicks.py); None: the dataset has no such groups.
    """

    queries: Split
    positives_L: NDArray[np.int64]
    inverse_propensity_L: FloatArray
    repeated_Q: BoolArray | None = None
    label_age_L: NDArray[np.float32] | None = None

    @cached_property
    def truth(self) -> list[NDArray[np.integer[Any]]]:
        """Return the true label rows of each query."""
        return [self.queries.labels[row] for row in range(len(self.queries))]

    @cached_property
    def scored(self) -> int:
        """Return the number of queries that have a true label; the others do not count."""
        return sum(len(labels) > 0 for labels in self.truth)

    @cached_property
    def seen(self) -> "EvaluationData | None":
        """Return this data restricted to true labels with a training positive.

        None if every label has one, or if no query keeps a true label.
        """
        seen_L = self.positives_L > 0
        kept_V = seen_L[self.queries.labels.values]
        if seen_L.all() or not kept_V.any():
            return None
        return dataclasses.replace(self, queries=self.queries.with_labels(kept_V))

    @cached_property
    def label_groups(self) -> dict[str, dict[str, BoolArray]]:
        """Return groups of labels, each as a mask [L], by kind: "labels" by frequency, "ages" by age if known."""
        groups = {"labels": slices.frequency_groups(self.positives_L)}
        return groups if self.label_age_L is None else groups | {"ages": slices.age_groups(self.label_age_L)}

    @cached_property
    def query_groups(self) -> dict[str, dict[str, BoolArray]]:
        """Return groups of queries, each as a mask [Q], by kind: "queries" by length, "history" if there is one."""
        groups = {"queries": slices.length_groups(self.queries.texts)}
        return groups if self.repeated_Q is None else groups | {"history": slices.history_groups(self.repeated_Q)}

    def metrics(self, row_QK: LabelRows, ks: Sequence[int] = KS) -> MetricValues:
        """Compute P@k, nDCG@k, PSP@k, R@k and C@k of one ranking, in percent; with click weights also wP@k and wR@k."""
        values = metrics.evaluate(row_QK, self.truth, self.inverse_propensity_L, ks)
        return values | {name: ratio.percent for name, ratio in self._click_ratios(row_QK, ks).items()}

    def ratios(self, row_QK: LabelRows) -> dict[str, Ratio]:
        """Return all metrics but C@k of one ranking, per query."""
        return metrics.ratios(row_QK, self.truth, self.inverse_propensity_L) | self._click_ratios(row_QK, KS)

    def _click_ratios(self, row_QK: LabelRows, ks: Sequence[int]) -> dict[str, Ratio]:
        weight_V = self.queries.weights_V
        if weight_V is None:
            return {}
        return metrics.click_ratios(row_QK, self.truth, weight_V, len(self.inverse_propensity_L), ks)


class LabelRanker(Protocol):
    """Rank labels for the queries of an evaluation."""

    def rank(self, mixes: Sequence[ScoreMix], allowed_L: BoolArray | None = None) -> Mapping[ScoreMix, LabelRows]:
        """Return the best label rows [Q, K] at each mix, without the excluded labels of each query.

        Only the labels `allowed_L` are ranked; None: all.
        """
        ...


class SliceMetric(NamedTuple):
    """A metric of one slice: of a head (`kind` "head"), or of a group of labels or queries.

    Kinds of groups are "labels" (by frequency), "ages" (of labels), "queries" (by length) and "history" (of queries).
    The prefix `SEEN` marks the kinds that are measured among the seen labels.
    """

    kind: str
    name: str
    metric: str


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The rankings of an evaluation by name, and their metrics in percent; "unified" is the model itself.

    `seen` is the result among the seen labels; None: see `EvaluationData.seen`.
    """

    data: EvaluationData
    rankings: Mapping[str, LabelRows]
    metrics: Mapping[str, MetricValues]
    seen: "EvaluationResult | None" = None

    def ratios(self, names: Sequence[str]) -> dict[SliceMetric, Ratio]:
        """Return the metrics per query: of the rankings `names`, and of the unified one per label and query group."""
        by_kind = {"head": {name: self.data.ratios(self.rankings[name]) for name in names}, **self.group_ratios()}
        ratios = {
            SliceMetric(kind, name, metric): ratio
            for kind, by_name in by_kind.items()
            for name, ratios in by_name.items()
            for metric, ratio in ratios.items()
        }
        among_seen = {} if self.seen is None else self.seen.ratios(names)
        return ratios | {key._replace(kind=SEEN + key.kind): ratio for key, ratio in among_seen.items()}

    def group_ratios(self, ranking: str = UNIFIED) -> dict[str, dict[str, dict[str, Ratio]]]:
        """Return the metrics of one ranking per query, by kind and group of labels and queries."""
        data, row_QK = self.data, self.rankings[ranking]
        ratios = data.ratios(row_QK)
        return {
            kind: slices.label_group_ratios(row_QK, data.queries.labels, groups)
            for kind, groups in data.label_groups.items()
        } | {kind: slices.query_group_ratios(ratios, groups) for kind, groups in data.query_groups.items()}

    def worst_queries(self, count: int) -> NDArray[np.int64]:
        """Return up to `count` rows of the queries that the unified ranking gets most wrong, the worst first."""
        return slices.worst_queries(self.rankings[UNIFIED], self.data.queries.labels, count)

    def examples(
        self, query_rows: Sequence[int] | NDArray[np.int64], label_texts: Sequence[str],
        scores_QK: NDArray[np.float32], answers: int | None = None,
    ) -> list[Example]:  # fmt: skip
        """Return queries with their first `answers` answers (None: all), their scores and their true labels."""
        queries, unified_QK = self.data.queries, self.rankings[UNIFIED][:, :answers]
        return [
            slices.example(
                queries.texts[row], unified_QK[row], queries.labels[row], label_texts, self.data.positives_L,
                scores_QK[row],
            )
            for row in map(int, query_rows)
        ]  # fmt: skip


def evaluate(
    ranker: LabelRanker, data: EvaluationData, mixes: Mapping[str, ScoreMix], ks: Sequence[int] = KS
) -> EvaluationResult:
    """Rank all labels, then the seen ones, for the queries of `data` at each named mix, and compute the metrics."""
    result = measure(ranker, data, mixes, ks)
    seen = None if data.seen is None else measure(ranker, data.seen, mixes, ks, data.positives_L > 0)
    return dataclasses.replace(result, seen=seen)


def measure(
    ranker: LabelRanker, data: EvaluationData, mixes: Mapping[str, ScoreMix], ks: Sequence[int] = KS,
    allowed_L: BoolArray | None = None,
) -> EvaluationResult:  # fmt: skip
    """Rank the labels `allowed_L` (None: all) at each named mix, and compute the metrics for each k in `ks`."""
    ranked = ranker.rank(list(mixes.values()), allowed_L)
    rankings = {name: ranked[mix] for name, mix in mixes.items()}
    return EvaluationResult(data, rankings, {name: data.metrics(rows, ks) for name, rows in rankings.items()})
