"""Who is told how a run goes: the console, TensorBoard's events, both of them, or nobody."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from training.checkpoint.files import Record
from training.monitoring.epoch_stats import Step, Tally


class Listener(Protocol):
    """Hears of long stages, of every step and of every validated epoch."""

    def stage(self, name: str) -> AbstractContextManager[Callable[[int, int], object]]:
        """A long stage outside the steps; yields a function to call with (done, total)."""
        ...

    def stepped(self, step: Step, epoch: Tally) -> None:
        """A step was taken; `epoch` is its epoch so far, this step included."""
        ...

    def validated(self, record: Record, best: Record) -> None:
        """An epoch was validated."""
        ...


class Nobody:
    """Listener that tells nobody."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], object]]:
        """Nothing to tell."""
        yield lambda done, total: None

    def stepped(self, step: Step, epoch: Tally) -> None:
        """Nothing to tell."""

    def validated(self, record: Record, best: Record) -> None:
        """Nothing to tell."""


class Both:
    """Listener that tells two others; a long stage shows on the first alone."""

    def __init__(self, first: Listener, second: Listener) -> None:
        self.first, self.second = first, second

    def stage(self, name: str) -> AbstractContextManager[Callable[[int, int], object]]:
        """The first one's stage."""
        return self.first.stage(name)

    def stepped(self, step: Step, epoch: Tally) -> None:
        """Tell both."""
        self.first.stepped(step, epoch)
        self.second.stepped(step, epoch)

    def validated(self, record: Record, best: Record) -> None:
        """Tell both."""
        self.first.validated(record, best)
        self.second.validated(record, best)
