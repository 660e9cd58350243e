"""A figure of the service: measured values with their limits, and notes."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.measuring.serving.load import QuerySet
from loadtest.report import Report


@dataclass(frozen=True)
class Durations:
    """Durations in seconds, and numbers of repetitions."""

    saturation: float = 10
    calm: float = 60
    rounds: int = 3
    switches: int = 20
    between_switches: float = 30  # ten times the loading time of a bundle under load
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


FULL = Durations()
SMALL = Durations(
    saturation=1, calm=2, rounds=1, switches=2, between_switches=15, kills=2, between_kills=3, overload=3,
    slow_clients=50, soak=20, between_soak_switches=6, examples=2, hostile=500, fuzzing=60, costly_bodies=5,
    fairness=1,
)  # fmt: skip


@dataclass(frozen=True)
class ServingSetup:
    """Input of every figure: the served store, its queries, a folder of this run, and a function for messages."""

    store: Path
    queries: QuerySet
    folder: Path
    lengths: Durations
    environments: Path
    log: Callable[[str], object]
    minilm: tuple[Path, Path] | None = None  # store and dataset
    model: str | None = None
    switching: Path | None = None


@dataclass(frozen=True)
class Limit:
    """A measured value that must be at most `limit`, or at least `limit` if `at_least`; `detail` explains the value."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    detail: str = ""

    @property
    def met(self) -> bool:
        """True if the value satisfies the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Figure:
    """A measured figure; `load` is the load average of the minute before it and of its last minute."""

    title: str
    limits: Sequence[Limit]
    notes: Sequence[str] = ()
    load: tuple[float, float] = (0, 0)
    seconds: float = 0
    command: str = ""
    machine: str = field(default="")

    def write(self, path: Path) -> None:
        """Write atomically."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "limits": [Limit(**limit) for limit in data["limits"]], "load": tuple(data["load"])})


def measured(figure: Callable[[ServingSetup], Figure], setup: ServingSetup, command: str, machine: str) -> Figure:
    """Measure a figure; record load, duration, command and machine."""
    before, began = os.getloadavg()[0], time.monotonic()
    result = figure(setup)
    return Figure(
        result.title,
        result.limits,
        result.notes,
        (before, os.getloadavg()[0]),
        time.monotonic() - began,
        command,
        machine,
    )


def no_failures(report: Report, kinds: str) -> Limit:
    """Require that every request of a run got a 200."""
    return Limit("requests that failed", report.failed, 0, detail=f"of {report.sent:,}; {kinds}")


def invalid_notes(report: Report, run: str) -> list[str]:
    """Return the reasons why a run of the load generator is invalid; empty for a valid run."""
    return [f"Invalid figures of {run}: {reason}" for reason in report.invalid]
