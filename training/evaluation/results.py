"""What `diptych evaluate` tells of one checkpoint, or of two side by side: plain facts, for the screen and for JSON."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.metrics import Ratio
from training.evaluation import slices as analysis
from training.evaluation.evaluate import Measurement, Part
from training.evaluation.scoring import HEADS, Blend, Figures
from training.evaluation.significance import RESAMPLES, SEED, Bootstrap, Contrast, Estimate, compare
from training.evaluation.slices import Example

HEADLINE = ("P@1", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@10")
PARTS = ("P@1", "P@5", "R@10", "PSP@5")
BY_KIND = {"head": PARTS, "labels": ("R@10", "P@5"), "queries": PARTS}


@dataclass(frozen=True)
class LabelGroup:
    """Labels of one frequency: how many, their training positives (least, most), and how well they are found."""

    labels: int
    least: int
    most: int
    true_labels: int
    queries: int
    figures: dict[str, float]
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class QueryGroup:
    """Queries of one length: how many, and how well they are answered."""

    queries: int
    figures: dict[str, float]
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Subject:
    """What was measured on what; PSP with the constants a and b."""

    dataset: str
    split: str
    queries: int
    propensity: dict[str, float]
    resamples: int
    seed: int


@dataclass(frozen=True)
class Reading:
    """One checkpoint: all figures by head, and the figures people compare with their 95 % intervals."""

    subject: Subject
    checkpoint: str
    blend: Blend
    figures: Figures
    estimates: dict[str, dict[str, Estimate]]
    unified_minus: dict[str, dict[str, Estimate]]
    label_frequency: dict[str, LabelGroup]
    query_length: dict[str, QueryGroup]
    worst: list[Example]


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints on the same queries: every part with its test, and the queries on which each finds fewer.

    Such a query stands there twice: with the first checkpoint's answers, and with the second's.
    """

    subject: Subject
    checkpoints: tuple[str, str]
    blends: tuple[Blend, Blend]
    figures: tuple[Figures, Figures]
    parts: list[Contrast[Part]]
    first_behind: list[tuple[Example, Example]]
    second_behind: list[tuple[Example, Example]]


def read(measured: Measurement, worst: int, resamples: int = RESAMPLES, seed: int = SEED) -> Reading:
    """Figures with intervals, by head, label frequency and query length, and the `worst` queries."""
    metrics = BY_KIND | {"head": HEADLINE}
    wanted = {part: ratio for part, ratio in measured.ratios.items() if part.metric in metrics[part.kind]}
    drawn = Bootstrap(wanted, resamples, seed)
    estimates: dict[tuple[str, str], dict[str, Estimate]] = {}
    for part in wanted:
        estimates.setdefault((part.kind, part.name), {})[part.metric] = drawn.estimate(part)
    alone = [head for head in HEADS if head != "unified"]
    return Reading(
        subject=_subject(measured, resamples, seed),
        checkpoint=str(measured.checkpoint),
        blend=measured.blend,
        figures=measured.figures,
        estimates={head: estimates["head", head] for head in HEADS},
        unified_minus={
            head: {m: drawn.difference(Part("head", "unified", m), Part("head", head, m)) for m in HEADLINE}
            for head in alone
        },
        label_frequency={n: _labels(measured, n, of) for (kind, n), of in estimates.items() if kind == "labels"},
        query_length={n: _queries(measured, n, of) for (kind, n), of in estimates.items() if kind == "queries"},
        worst=measured.examples(analysis.worst_queries(measured.ranking_QK, measured.asked.labels, worst)),
    )


def contrast(
    first: Measurement, second: Measurement, worst: int, resamples: int = RESAMPLES, seed: int = SEED
) -> Comparison:
    """Which of two measurements of the same queries is better on which part; `worst` queries of each."""
    chosen = [{p: r for p, r in m.ratios.items() if p.metric in BY_KIND[p.kind]} for m in (first, second)]
    hits_Q, others_Q = (analysis.found(measured.ranking_QK, measured.asked.labels)[0] for measured in (first, second))
    return Comparison(
        subject=_subject(first, resamples, seed),
        checkpoints=(str(first.checkpoint), str(second.checkpoint)),
        blends=(first.blend, second.blend),
        figures=(first.figures, second.figures),
        parts=compare(chosen[0], chosen[1], resamples, seed),
        first_behind=_side_by_side(first, second, _greatest(others_Q - hits_Q, worst)),
        second_behind=_side_by_side(first, second, _greatest(hits_Q - others_Q, worst)),
    )


def plain(told: Reading | Comparison) -> Any:
    """Return everything as plain values for JSON: percent and points, null if there is no interval."""
    return _plain(asdict(told))


def _subject(measured: Measurement, resamples: int, seed: int) -> Subject:
    a, b = measured.propensity
    return Subject(measured.dataset_name, measured.split, measured.queries, {"a": a, "b": b}, resamples, seed)


def _labels(measured: Measurement, name: str, estimates: dict[str, Estimate]) -> LabelGroup:
    member_L = measured.groups[name]
    return LabelGroup(
        labels=int(member_L.sum()),
        least=int(measured.counts_L[member_L].min()),
        most=int(measured.counts_L[member_L].max()),
        true_labels=int(member_L[measured.asked.labels.values].sum()),
        queries=_ratio(measured, "labels", name, "R@10").queries,
        figures=_figures(measured, "labels", name),
        estimates=estimates,
    )


def _queries(measured: Measurement, name: str, estimates: dict[str, Estimate]) -> QueryGroup:
    return QueryGroup(
        queries=_ratio(measured, "queries", name, "P@1").queries,
        figures=_figures(measured, "queries", name),
        estimates=estimates,
    )


def _ratio(measured: Measurement, kind: str, name: str, metric: str) -> Ratio:
    return measured.ratios[Part(kind, name, metric)]


def _figures(measured: Measurement, kind: str, name: str) -> dict[str, float]:
    return {p.metric: r.percent for p, r in measured.ratios.items() if (p.kind, p.name) == (kind, name)}


def _greatest(lead_Q: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Up to `count` queries with more true labels found, the greatest lead first, equal ones by row."""
    order_Q = np.argsort(-lead_Q, kind="stable")
    return order_Q[lead_Q[order_Q] > 0][:count]


def _side_by_side(first: Measurement, second: Measurement, rows: NDArray[np.int64]) -> list[tuple[Example, Example]]:
    return list(zip(first.examples(rows), second.examples(rows), strict=True))


def _plain(value: Any) -> Any:
    """Named tuples as objects, numbers with six decimals."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
