"""Summarise the runs of a system over its seeds: median, minimum and maximum."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.systems import RunResult
from training.evaluation.headline import KEY_METRICS, UNIFIED
from training.evaluation.results import MetricValues
from training.evaluation.significance import Estimate

HEADLINE = KEY_METRICS
GAP_KS = (1, 5)


class Spread(NamedTuple):
    """Median, minimum and maximum over the seeds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class ScoredRun:
    """One run with its metrics by head; `gaps` are P@k of the unified model minus each head, by head and k.

    `seen_metrics` are those among the labels with a training positive; empty if the test split has no others.
    """

    seed: int | None
    metrics: dict[str, MetricValues]
    seen_metrics: dict[str, MetricValues]
    cost: Mapping[str, float | None]
    gaps: dict[str, dict[int, Estimate]]


@dataclass(frozen=True)
class System:
    """All runs of one peer or recipe."""

    title: str
    ours: bool
    runs: tuple[ScoredRun, ...]

    def metric(self, name: str, head: str = UNIFIED, *, seen: bool = False) -> Spread | None:
        """Return a metric over the seeds, for all labels or among the seen ones; None if there are no such labels."""
        return spread((run.seen_metrics if seen else run.metrics).get(head, {}).get(name) for run in self.runs)

    def cost(self, name: str) -> Spread | None:
        """Return a cost over the seeds; None if it was not measured."""
        return spread(run.cost.get(name) for run in self.runs)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return median, minimum and maximum of the values that are not None."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def scored(result: RunResult, scorer: Scorer) -> ScoredRun:
    """Compute metrics and gaps of one run."""
    return ScoredRun(
        seed=result.seed,
        metrics={head: scorer.metrics(answers) for head, answers in result.rankings.items()},
        seen_metrics={head: scorer.seen_metrics(answers) for head, answers in result.seen_rankings.items()},
        cost=result.cost,
        gaps=scorer.gaps(result.rankings, GAP_KS),
    )


def as_json(systems: Iterable[System]) -> dict[str, Any]:
    """Return the data of the table and the plots."""
    return {
        system.title: [
            {
                "seed": run.seed,
                "figures": _rounded(run.metrics),
                "seen_figures": _rounded(run.seen_metrics),
                "cost": {name: None if value is None else round(value, 3) for name, value in run.cost.items()},
            }
            for run in system.runs
        ]
        for system in systems
    }


def _rounded(by_head: Mapping[str, MetricValues]) -> dict[str, MetricValues]:
    return {head: {name: round(value, 4) for name, value in of.items()} for head, of in by_head.items()}
