"""What a figure of the service is: bars to reach with what was measured, and lines beside them."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.measuring.serving_load import Queries
from loadtest.report import Report


@dataclass(frozen=True)
class Lengths:
    """How long and how often; times are seconds."""

    saturation: float = 10
    calm: float = 60
    rounds: int = 3
    switches: int = 20
    between_switches: float = 30  # a bundle loads in a tenth of the time while clients ask
    kills: int = 10
    between_kills: float = 20  # three in a minute: five are a crash loop
    overload: float = 60
    slow_clients: int = 1000
    soak: float = 900
    between_soak_switches: float = 60
    examples: int = 200  # of schemathesis, for each operation
    hostile: int = 100_000
    fuzzing: float = 1800
    costly_bodies: int = 200  # random bodies besides the known ones
    fairness: float = 10  # seconds of each run


WHOLE = Lengths()
SMALL = Lengths(
    saturation=1, calm=2, rounds=1, switches=2, between_switches=15, kills=2, between_kills=3, overload=3,
    slow_clients=50, soak=20, between_soak_switches=6, examples=2, hostile=500, fuzzing=60, costly_bodies=5,
    fairness=1,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every figure gets: the store that is served, its queries, a folder of this run, and somebody to tell."""

    store: Path
    queries: Queries
    folder: Path
    lengths: Lengths
    environments: Path
    tell: Callable[[str], object]
    minilm: tuple[Path, Path] | None = None  # store and dataset
    model: str | None = None
    switching: Path | None = None


@dataclass(frozen=True)
class Bar:
    """One thing to reach: `value` is to be at least, or at most, `limit`."""

    asked: str
    value: float
    limit: float
    least: bool = False
    beside: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value >= self.limit if self.least else self.value <= self.limit


@dataclass(frozen=True)
class Figure:
    """A figure as it was measured; `load` is how many processes wanted a core in the minute before and in its last."""

    title: str
    bars: Sequence[Bar]
    notes: Sequence[str] = ()
    load: tuple[float, float] = (0, 0)
    seconds: float = 0
    command: str = ""
    machine: str = field(default="")

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        aside.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """As `write` left it."""
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**found, "bars": [Bar(**bar) for bar in found["bars"]], "load": tuple(found["load"])})


def measured(figure: Callable[[Bench], Figure], bench: Bench, command: str, machine: str) -> Figure:
    """Measure, and add under which load, how long it took and what made it."""
    before, began = os.getloadavg()[0], time.monotonic()
    found = figure(bench)
    return Figure(
        found.title, found.bars, found.notes, (before, os.getloadavg()[0]), time.monotonic() - began, command, machine
    )


def no_failures(report: Report, kinds: str) -> Bar:
    """That every request of a run got a 200."""
    return Bar("requests that failed", report.failed, 0, beside=f"of {report.sent:,}; {kinds}")


def doubts(report: Report, run: str) -> list[str]:
    """Why the generator takes its own figures for invalid; nothing when it does not."""
    return [f"The generator's doubt of {run}: {reason}" for reason in report.invalid]
