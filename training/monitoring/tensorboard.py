"""TensorBoard events of a run: one curve a figure, however often the run was interrupted.

    loss/…              by step: total, and each part as head/direction/term; the parts sum to the total
    batch/…             by step: positives a query finds in its pool, labels of the pool
    learning_rate/…     by step, by what it moves
    machine/…           by step: queries a second, memory in GB
    epoch/…             by validated epoch: mean loss, score that chooses the best epoch, classifier weight
    validation_HEAD/…   by validated epoch: every figure in percent

The horizontal axis counts the steps taken before: a run's first step stands at 0, its first validation at the steps of
an epoch. A run tells TensorBoard to forget what stands at or beyond the step it goes on from, which is 0 where an
earlier one ended before it saved anything.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from training.checkpoint.files import Cursor, Record
from training.monitoring.epoch_stats import Step, Tally

POINTS = 1000  # of a curve by step: TensorBoard itself shows a sample of that many


class Events:
    """Listener that writes to a new file in `folder`, going on from `cursor`; OSError when the disk is full.

    Written by the record rather than with SummaryWriter: its thread meets a full disk where nobody can catch it.
    """

    def __init__(self, folder: Path, cursor: Cursor) -> None:
        self.taken = cursor.taken
        folder.mkdir(exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names.
        self.file = (folder / f"events.out.tfevents.{time.time_ns()}").open("wb")
        self.writer = RecordWriter(self.file)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=cursor.taken, session_log=SessionLog(status=SessionLog.START)))
        if cursor.step == 0 and cursor.history:  # this validation stands where the forgotten part begins
            self.validated(cursor.history[-1], cursor.history[-1])

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], object]]:
        """Nothing to write."""
        yield lambda done, total: None

    def stepped(self, step: Step, epoch: Tally) -> None:
        """The figures of this step alone, of about POINTS steps of a run."""
        self.taken = step.done
        at = step.done - 1
        if at % max(1, step.total // POINTS):
            return
        gigabytes = {"memory_GB": step.memory_bytes / 1e9, "gpu_memory_GB": step.gpu_bytes / 1e9}
        groups = {
            "loss": {"total": step.loss, **step.parts},
            "batch": {"positives_a_query": step.positives / step.queries, "labels_in_pool": step.labels},
            "learning_rate": step.rates,
            "machine": {"queries_a_second": step.queries / step.seconds, **{n: v for n, v in gigabytes.items() if v}},
        }
        self._write(groups, at)

    def validated(self, record: Record, best: Record) -> None:
        """The figures of an epoch, on disk when this returns."""
        chosen = {"loss": record.loss, "score": record.score, "classifier_weight": record.classifier_weight}
        heads = {f"validation_{head}": figures for head, figures in record.figures.items()}
        self._write({"epoch": chosen, **heads}, self.taken)
        self.file.flush()

    def _write(self, groups: Mapping[str, Mapping[str, float]], at: int) -> None:
        values = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for group, figures in groups.items()
            for name, value in figures.items()
        ]
        self._add(Event(step=at, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self.writer.write(event.SerializeToString())
