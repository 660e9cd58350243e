"""Write TensorBoard events of a run, also across interruptions.

    loss/…              per step: total, and each term as head/direction/term; the terms sum to the total
    batch/…             per step: positives of a query in its pool, labels of the pool
    learning_rate/…     per step, by the weights it applies to
    machine/…           per step: queries per second, memory in GB
    epoch/…             per validated epoch: mean loss, score that selects the best epoch, classifier weight
    validation_HEAD/…   per validated epoch: every metric in percent

The horizontal axis counts the steps before an event: the first step of a run is at 0, the first validation at the
number of steps per epoch. A resumed run tells TensorBoard to drop events at or after its first step; if an earlier run
ended before it saved a state, that is step 0.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from retrieval.system.progress import Progress, silent_stage
from training.checkpoint.schema import EpochRecord, RunPosition
from training.optim.step_stats import EpochStats, StepStats

POINTS = 1000  # per curve of steps; TensorBoard itself shows a sample of that size


class TensorBoardCallback:
    """Writes events to a new file in `folder`, from `position` on. Raises OSError if the disk is full.

    Does not use torch's SummaryWriter: on a full disk its thread prints a traceback, and TensorBoard reads files in
    the order of their names, where SummaryWriter's have only whole seconds.
    """

    def __init__(self, folder: Path, position: RunPosition) -> None:
        self._steps_taken = position.steps_taken
        folder.mkdir(exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}").open("wb")
        self._writer = RecordWriter(self._file)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=position.steps_taken, session_log=SessionLog(status=SessionLog.START)))
        if position.step == 0 and position.history:  # this validation is at the first step that TensorBoard drops
            self.on_validation(position.history[-1], position.history[-1])

    def __enter__(self) -> "TensorBoardCallback":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """Ignore the stage."""
        return silent_stage(name)

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        """Write the statistics of the step, for about POINTS steps of the run."""
        at = step.index.done
        self._steps_taken = at + 1
        if at % max(1, step.index.total // POINTS):
            return
        gigabytes = {"memory_GB": step.memory_bytes / 1e9, "gpu_memory_GB": step.gpu_bytes / 1e9}
        machine = {"queries_per_second": step.queries / step.seconds, **{n: v for n, v in gigabytes.items() if v}}
        groups = {
            "loss": {"total": step.loss, **step.losses},
            "batch": {"positives_per_query": step.positives / step.queries, "labels_in_pool": step.labels},
            "learning_rate": step.rates,
            "machine": machine,
        }
        self._write(groups, at)

    def on_validation(self, record: EpochRecord, best: EpochRecord) -> None:
        """Write the metrics of the epoch and flush the file."""
        epoch = {"loss": record.loss, "score": record.score, "classifier_weight": record.classifier_weight}
        heads = {f"validation_{head}": metrics for head, metrics in record.metrics.items()}
        heads |= {f"validation_seen_labels_{head}": metrics for head, metrics in record.seen_metrics.items()}
        self._write({"epoch": epoch, **heads}, self._steps_taken)
        self._file.flush()

    def _write(self, groups: Mapping[str, Mapping[str, float]], step: int) -> None:
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for group, scalars in groups.items()
            for name, value in scalars.items()
        ]
        self._add(Event(step=step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
