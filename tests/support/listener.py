"""A Listener that keeps what it was told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from training.checkpoint.files import Record
from training.monitoring.epoch_stats import Step, Tally


class Kept:
    """Stages, steps and validated epochs of a run, in order."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[Step] = []
        self.records: list[Record] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], object]]:
        self.stages.append(name)
        yield lambda done, total: None

    def stepped(self, step: Step, epoch: Tally) -> None:
        self.steps.append(step)

    def validated(self, record: Record, best: Record) -> None:
        self.records.append(record)
