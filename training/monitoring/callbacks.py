"""Callbacks of a training run: long stages, steps and validated epochs."""

from contextlib import AbstractContextManager
from typing import Protocol

from retrieval.system.progress import Progress, silent_stage
from training.checkpoint.schema import EpochRecord
from training.optim.step_stats import EpochStats, StepStats


class Callback(Protocol):
    """Receives the events of a run."""

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """Enclose a long stage outside the steps; yields a function to call with (done, total)."""
        ...

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        """Receive the statistics of a step and of its epoch so far, including the step."""
        ...

    def on_validation(self, record: EpochRecord, best: EpochRecord) -> None:
        """Receive the records of the validated epoch and of the best epoch so far."""
        ...


class NullCallback:
    """Callback that ignores all events."""

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """Ignore the stage."""
        return silent_stage(name)

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        """Ignore the step."""

    def on_validation(self, record: EpochRecord, best: EpochRecord) -> None:
        """Ignore the validated epoch."""


class CallbackPair:
    """Passes steps and validated epochs to two callbacks, and stages to the first."""

    def __init__(self, first: Callback, second: Callback) -> None:
        self.first, self.second = first, second

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """Return the first callback's stage."""
        return self.first.stage(name)

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        """Pass the step to both."""
        self.first.on_step(step, epoch)
        self.second.on_step(step, epoch)

    def on_validation(self, record: EpochRecord, best: EpochRecord) -> None:
        """Pass the validated epoch to both."""
        self.first.on_validation(record, best)
        self.second.on_validation(record, best)
