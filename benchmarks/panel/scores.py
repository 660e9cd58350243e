"""Scores of every system on one dataset of the panel, with intervals, and their JSON form.

Each figure is a ratio of sums over the test queries, averaged over the seeds. It is computed for all labels, and among
the labels with a training positive ("seen"), where rankings and true labels are restricted to them.

Shapes: L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.systems import RunResult
from retrieval.metrics import Ratio
from training.evaluation.headline import KEY_METRICS, UNIFIED
from training.evaluation.significance import Bootstrap, Estimate

GROUPS = ("all", "seen")
Figures = dict[str, Estimate]  # by metric


class SystemScores(BaseModel):
    """Figures of one system by group and metric, with 95 % intervals.

    `behind`: figures of the dataset's first system minus this one, paired by query; empty for the first system.
    `validation`: validation metrics of a recipe, the mean over the seeds; empty for a peer. `cost`: medians.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_recipe: bool
    seeds: int
    figures: dict[str, Figures]
    behind: dict[str, Figures] = {}
    validation: dict[str, float] = {}
    cost: dict[str, float | None] = {}


class DatasetScores(BaseModel):
    """All systems on one dataset by title. `seen_positives`: percentage of the test positives whose label is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    train: int
    validation: int
    test: int
    labels: int
    labels_per_query: float
    seen_positives: float
    systems: dict[str, SystemScores]


@dataclass(frozen=True)
class MeasuredSystem:
    """All runs of a system; `validation` has the validation metrics of each run of a recipe."""

    title: str
    is_recipe: bool
    runs: tuple[RunResult, ...]
    validation: tuple[Mapping[str, float], ...] = ()


def score_dataset(scorer: Scorer, systems: Sequence[MeasuredSystem]) -> DatasetScores:
    """Compute the figures of all systems and the differences to the first one."""
    ratios = {system.title: ratios_by_group(scorer, system.runs) for system in systems}
    first = next(iter(ratios))
    bootstraps = {group: _bootstrap(ratios, group) for group in GROUPS if group in ratios[first]}
    counts = scorer.dataset.meta.splits
    labels = scorer.queries.labels
    return DatasetScores(
        fingerprint=scorer.dataset.fingerprint,
        train=counts["train"].rows,
        validation=counts["validation"].rows,
        test=len(scorer.queries),
        labels=scorer.dataset.n_labels,
        labels_per_query=len(labels.values) / len(labels),
        seen_positives=100.0 * float(np.mean(scorer.data.positives_L[labels.values] > 0)),
        systems={system.title: _scores(system, first, bootstraps) for system in systems},
    )


def ratios_by_group(scorer: Scorer, runs: Sequence[RunResult]) -> dict[str, dict[str, Ratio]]:
    """Return each metric by group, with gains averaged over the runs; "seen" only if the test split has both kinds."""
    by_run = [_ratios(scorer, run) for run in runs]
    return {
        group: {metric: _mean([of[group][metric] for of in by_run]) for metric in KEY_METRICS} for group in by_run[0]
    }


def _ratios(scorer: Scorer, run: RunResult) -> dict[str, dict[str, Ratio]]:
    by_group = {"all": scorer.ratios(run.rankings[UNIFIED])}
    if scorer.data.seen is not None:
        by_group["seen"] = scorer.ratios(run.seen_rankings[UNIFIED], seen=True)
    return by_group


def _mean(ratios: Sequence[Ratio]) -> Ratio:
    return Ratio(np.mean([ratio.gain_Q for ratio in ratios], axis=0), ratios[0].base_Q)


def _bootstrap(ratios: Mapping[str, Mapping[str, Mapping[str, Ratio]]], group: str) -> Bootstrap[tuple[str, str]]:
    """Return one bootstrap of all systems and metrics of a group, so that differences are paired."""
    return Bootstrap({(title, metric): of[group][metric] for title, of in ratios.items() for metric in KEY_METRICS})


def _scores(system: MeasuredSystem, first: str, bootstraps: Mapping[str, Bootstrap[tuple[str, str]]]) -> SystemScores:
    title = system.title
    figures = {
        group: {metric: _rounded(of.estimate((title, metric))) for metric in KEY_METRICS}
        for group, of in bootstraps.items()
    }
    behind = {
        group: {metric: _rounded(of.difference((first, metric), (title, metric))) for metric in KEY_METRICS}
        for group, of in bootstraps.items()
    }
    names = system.validation[0] if system.validation else ()
    return SystemScores(
        is_recipe=system.is_recipe,
        seeds=len(system.runs),
        figures=figures,
        behind={} if title == first else behind,
        validation={name: float(np.mean([of[name] for of in system.validation])) for name in names},
        cost={name: _median([run.cost.get(name) for run in system.runs]) for name in system.runs[0].cost},
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _rounded(estimate: Estimate) -> Estimate:
    """Return the estimate with three decimals."""
    value, low, high = (None if of is None else round(of, 3) for of in (estimate.value, estimate.low, estimate.high))
    return Estimate(value or 0.0, low, high)
