"""The runs of one system become one column: the median over its seeds, and the least and greatest beside it."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.measuring.scoring import Figures, Judge
from benchmarks.measuring.systems import Ran
from training.evaluation.headline import KEY_METRICS
from training.evaluation.significance import Estimate

HEADLINE = KEY_METRICS
GAPS_AT = (1, 5)


class Spread(NamedTuple):
    """Median, least and greatest over the seeds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """One run with its figures by head; `gaps` are the unified model's over each head alone, by head and k."""

    seed: int | None
    figures: dict[str, Figures]
    cost: Mapping[str, float | None]
    gaps: dict[str, dict[int, Estimate]]


@dataclass(frozen=True)
class System:
    """All runs of one peer or recipe."""

    title: str
    ours: bool
    runs: tuple[Scored, ...]

    def figure(self, name: str, head: str = "unified") -> Spread | None:
        """A metric over the seeds; None where the set has no such labels."""
        return spread(run.figures[head].get(name) for run in self.runs)

    def cost(self, name: str) -> Spread | None:
        """A cost over the seeds; None where no process measured it."""
        return spread(run.cost.get(name) for run in self.runs)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median, least and greatest of what is known."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def scored(ran: Ran, judge: Judge) -> Scored:
    """Figures and gaps of one run."""
    return Scored(
        seed=ran.seed,
        figures={head: judge.figures(answers) for head, answers in ran.rankings.items()},
        cost=ran.cost,
        gaps=judge.gaps(ran.rankings, GAPS_AT),
    )


def as_json(systems: Iterable[System]) -> dict[str, Any]:
    """Everything that the table and the plots are made of."""
    return {
        system.title: [
            {
                "seed": run.seed,
                "figures": {head: {n: round(v, 4) for n, v in of.items()} for head, of in run.figures.items()},
                "cost": {name: None if value is None else round(value, 3) for name, value in run.cost.items()},
            }
            for run in system.runs
        ]
        for system in systems
    }
