"""A Listener that keeps what it was told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from training.checkpoint import Record


class Kept:
    """Stages, steps and validated epochs of a run, in order."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.records: list[Record] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], object]]:
        self.stages.append(name)
        yield lambda done, total: None

    def stepped(self, epoch: int, done: int, total: int, loss: float) -> None:
        self.steps.append((done, total))

    def validated(self, record: Record, best: Record) -> None:
        self.records.append(record)
