"""Summarise one checkpoint evaluation, or compare two: plain values for the console and for JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.metrics import Ratio
from training.evaluation import slices
from training.evaluation.checkpoint_evaluation import CheckpointEvaluation
from training.evaluation.headline import (
    CLICK_METRICS,
    HEADLINE_METRICS,
    KEY_METRICS,
    LABEL_GROUP_METRICS,
    UNIFIED,
)
from training.evaluation.results import SEEN, EvaluationResult, MetricValues, SliceMetric
from training.evaluation.scoring import ScoreMix
from training.evaluation.significance import RESAMPLES, SEED, Bootstrap, Contrast, Estimate, compare
from training.evaluation.slices import Example

# C@k has no ratio per query.
INTERVAL_METRICS = (*(name for name in HEADLINE_METRICS if not name.startswith("C@")), *CLICK_METRICS)
QUERY_METRICS = (*KEY_METRICS, CLICK_METRICS[0])
METRICS_BY_KIND = {
    "head": (*KEY_METRICS, *CLICK_METRICS), "labels": LABEL_GROUP_METRICS, "ages": LABEL_GROUP_METRICS,
    "queries": QUERY_METRICS, "history": QUERY_METRICS,
}  # fmt: skip
COMPARED_KINDS = METRICS_BY_KIND | {
    f"{SEEN}head": METRICS_BY_KIND["head"]
}  # groups of seen labels: more tests, no news


@dataclass(frozen=True)
class LabelGroup:
    """Labels of similar frequency or age: their number, the range of their training positives, and metrics in percent.

    `true_labels` counts pairs of a query and a true label of this group, `queries` the queries with such a pair.
    """

    labels: int
    min_positives: int
    max_positives: int
    true_labels: int
    queries: int
    metrics: MetricValues
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class QueryGroup:
    """Queries of similar length, or with the same history: their number, and their metrics in percent."""

    queries: int
    metrics: MetricValues
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Subject:
    """The dataset and split, the number of queries, the constants of PSP, and how intervals are resampled."""

    dataset: str
    split: str
    queries: int
    propensity: dict[str, float]
    resamples: int
    seed: int


@dataclass(frozen=True)
class ScopeSummary:
    """Metrics for all labels or among the seen ones: by head, and the headline metrics with 95 % intervals.

    `true_labels` counts pairs of a query and a true label. `unified_minus` holds the paired differences between the
    unified model and each head. `label_age` is empty if the dataset has no days, `query_history` if no query is
    repeated.
    """

    true_labels: int
    metrics: dict[str, MetricValues]
    estimates: dict[str, dict[str, Estimate]]
    unified_minus: dict[str, dict[str, Estimate]]
    label_frequency: dict[str, LabelGroup]
    label_age: dict[str, LabelGroup]
    query_length: dict[str, QueryGroup]
    query_history: dict[str, QueryGroup]


@dataclass(frozen=True)
class EvaluationSummary(ScopeSummary):
    """One checkpoint, for all labels, and in `seen` among the labels with a training positive; None: all have one.

    `shortlist_recall` is that of each level of a cascade in percent, the labels last; empty without a cascade.
    """

    subject: Subject
    checkpoint: str
    mix: ScoreMix
    tuned: ScoreMix | None
    seen: ScopeSummary | None
    worst: list[Example]
    shortlist_recall: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationComparison:
    """Two checkpoints on the same queries: every slice with its test, and queries on which one finds fewer labels.

    Each such query is given with the first checkpoint's answers and with the second's.
    """

    subject: Subject
    checkpoints: tuple[str, str]
    mixes: tuple[ScoreMix, ScoreMix]
    metrics: tuple[dict[str, MetricValues], dict[str, MetricValues]]
    contrasts: list[Contrast[SliceMetric]]
    first_behind: list[tuple[Example, Example]]
    second_behind: list[tuple[Example, Example]]


def summarize(
    evaluation: CheckpointEvaluation, worst: int, resamples: int = RESAMPLES, seed: int = SEED
) -> EvaluationSummary:
    """Compute intervals by head and by group of labels and queries, and list the `worst` queries."""
    seen = evaluation.result.seen
    return EvaluationSummary(
        subject=_subject(evaluation, resamples, seed),
        checkpoint=str(evaluation.checkpoint),
        mix=evaluation.mix,
        tuned=evaluation.tuned,
        seen=None if seen is None else ScopeSummary(**_scope(evaluation, seen, SEEN, resamples, seed)),
        worst=evaluation.examples(evaluation.result.worst_queries(worst)),
        shortlist_recall=evaluation.shortlist_recall,
        **_scope(evaluation, evaluation.result, "", resamples, seed),
    )


def _scope(
    evaluation: CheckpointEvaluation, result: EvaluationResult, prefix: str, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the fields of a ScopeSummary; `prefix` marks the kinds of the evaluation's ratios that belong to it."""
    shown = METRICS_BY_KIND | {"head": INTERVAL_METRICS}
    ratios = {
        key._replace(kind=key.kind.removeprefix(prefix)): ratio
        for key, ratio in evaluation.ratios.items()
        if key.kind.startswith(SEEN) == bool(prefix)
    }
    with_interval = {key: ratio for key, ratio in ratios.items() if key.metric in shown[key.kind]}
    bootstrap = Bootstrap(with_interval, resamples, seed)
    estimates: dict[str, dict[str, dict[str, Estimate]]] = {}
    for key in with_interval:
        estimates.setdefault(key.kind, {}).setdefault(key.name, {})[key.metric] = bootstrap.estimate(key)

    def margins(head: str) -> dict[str, Estimate]:
        names = estimates["head"][head]
        pairs = {m: (SliceMetric("head", UNIFIED, m), SliceMetric("head", head, m)) for m in names}
        return {metric: bootstrap.difference(*pair) for metric, pair in pairs.items()}

    groups = {
        kind: {name: _group(result, ratios, kind, name, of) for name, of in estimates.get(kind, {}).items()}
        for kind in METRICS_BY_KIND
        if kind != "head"
    }
    return {
        "true_labels": len(result.data.queries.labels.values), "metrics": dict(result.metrics),
        "estimates": estimates["head"],
        "unified_minus": {head: margins(head) for head in estimates["head"] if head != UNIFIED},
        "label_frequency": groups["labels"], "label_age": groups["ages"],
        "query_length": groups["queries"], "query_history": groups["history"],
    }  # fmt: skip


def compare_evaluations(
    first: CheckpointEvaluation, second: CheckpointEvaluation, worst: int, resamples: int = RESAMPLES, seed: int = SEED
) -> EvaluationComparison:
    """Test on which slices one of two evaluations of the same queries is better; list `worst` queries of each."""
    ratios = [
        {key: ratio for key, ratio in one.ratios.items() if key.metric in COMPARED_KINDS.get(key.kind, ())}
        for one in (first, second)
    ]
    first_hits_Q, second_hits_Q = (
        slices.count_hits(one.result.rankings[UNIFIED], one.result.data.queries.labels)[0] for one in (first, second)
    )
    return EvaluationComparison(
        subject=_subject(first, resamples, seed),
        checkpoints=(str(first.checkpoint), str(second.checkpoint)),
        mixes=(first.mix, second.mix),
        metrics=(first.metrics, second.metrics),
        contrasts=compare(ratios[0], ratios[1], resamples, seed),
        first_behind=_side_by_side(first, second, _largest(second_hits_Q - first_hits_Q, worst)),
        second_behind=_side_by_side(first, second, _largest(first_hits_Q - second_hits_Q, worst)),
    )


def to_json(summary: EvaluationSummary | EvaluationComparison) -> Any:
    """Return plain values for JSON: percent and points, null if there is no interval."""
    return _plain(asdict(summary))


def _subject(evaluation: CheckpointEvaluation, resamples: int, seed: int) -> Subject:
    a, b = evaluation.propensity
    queries = len(evaluation.result.data.queries)
    return Subject(evaluation.dataset.meta.name, evaluation.split, queries, {"a": a, "b": b}, resamples, seed)


def _group(
    result: EvaluationResult, ratios: Mapping[SliceMetric, Ratio], kind: str, name: str, estimates: dict[str, Estimate]
) -> LabelGroup | QueryGroup:
    """Summarise a group of labels or queries; all metrics, and `estimates` of some."""
    data = result.data
    metrics = {key.metric: ratio.percent for key, ratio in ratios.items() if (key.kind, key.name) == (kind, name)}
    if kind not in data.label_groups:
        queries = ratios[SliceMetric(kind, name, "P@1")].queries
        return QueryGroup(queries=queries, metrics=metrics, estimates=estimates)
    member_L = data.label_groups[kind][name]
    return LabelGroup(
        labels=int(member_L.sum()),
        min_positives=int(data.positives_L[member_L].min()),
        max_positives=int(data.positives_L[member_L].max()),
        true_labels=int(member_L[data.queries.labels.values].sum()),
        queries=ratios[SliceMetric(kind, name, "R@10")].queries,
        metrics=metrics,
        estimates=estimates,
    )


def _largest(lead_Q: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return up to `count` query rows with a positive lead, the largest first, ties by row."""
    order_Q = np.argsort(-lead_Q, kind="stable")
    return order_Q[lead_Q[order_Q] > 0][:count]


def _side_by_side(
    first: CheckpointEvaluation, second: CheckpointEvaluation, query_rows: NDArray[np.int64]
) -> list[tuple[Example, Example]]:
    return list(zip(first.examples(query_rows), second.examples(query_rows), strict=True))


def _plain(value: Any) -> Any:
    """Convert named tuples to objects, and round numbers to six decimals."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
