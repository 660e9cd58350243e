"""A callback that records the events of a run."""

from contextlib import AbstractContextManager

from retrieval.system.progress import Progress, silent_stage
from training.checkpoint.schema import EpochRecord
from training.optim.step_stats import EpochStats, StepStats


class RecordingCallback:
    """Stages, steps and validated epochs of a run, in order."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[StepStats] = []
        self.records: list[EpochRecord] = []

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        self.stages.append(name)
        return silent_stage(name)

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        self.steps.append(step)

    def on_validation(self, record: EpochRecord, best: EpochRecord) -> None:
        self.records.append(record)
