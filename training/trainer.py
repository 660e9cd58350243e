"""The training loop (UniDEC, Algorithm 1) with resumable state.

    Algorithm 1                            here
    for e in 1..ε                          Trainer.run
    every τ epochs: CLUSTER, topk(ANNS)    BatchSource.refresh
    for Q_B in B                           BatchSource.epoch_batches
    sample P_i and H_i; L_B, P^B, P^L      BatchSource.device_batch
    L_D, L_C, L                            TrainingStep.backward
    adjust Φ, g1, g2 and Ψ                 TrainingStep.update

Validation, checkpoints, callbacks and stopping are not part of Algorithm 1.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.system import stopping
from training.batching.batch_source import BatchSource
from training.checkpoint.manager import CheckpointManager
from training.checkpoint.schema import RunPosition
from training.checkpoint.state import RunState
from training.evaluation.cascade.validator import CascadeValidator
from training.evaluation.validator import Validator
from training.monitoring.callbacks import Callback
from training.optim.averaging import AveragedWeights
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.step_stats import EpochStats, StepIndex, StepStats, gpu_bytes, resident_bytes
from training.optim.training_step import TrainingStep
from training.recipe.schema import Recipe


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


class Trainer:
    """One run of Algorithm 1, from `position` to the end of the last epoch.

    `should_stop` is called after every step. If it returns true, the state is saved and Stopped is raised. A signal has
    the same effect at once; a resumed run repeats the interrupted part.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: BatchSource,
        training_step: TrainingStep,
        validator: Validator | CascadeValidator,
        average: AveragedWeights,
        checkpoints: CheckpointManager,
        callback: Callback,
        position: RunPosition,
        should_stop: Callable[[], bool],
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.recipe, self.source, self.training_step = recipe, source, training_step
        self.validator, self.average, self.checkpoints, self.callback = validator, average, checkpoints, callback
        self.position, self.should_stop, self.processes = position, should_stop, processes

    def run(self) -> RunPosition:
        """Train to the last epoch, or until validation ends training early; return the position. Raises Stopped."""
        with stopping.deferred():
            try:
                while self.position.epoch < self.recipe.optimizer.epochs and not self._ends_early():
                    self._run_epoch(self.position.epoch)
            except (stopping.StopRequested, KeyboardInterrupt):
                # Only code that does not change the state is interruptible, so the position is right.
                self._save_state()
                raise Stopped from None
            self._save_state()
        return self.position

    def _ends_early(self) -> bool:
        """Return whether the last validations were not better than the best; the same in every process."""
        patience = self.recipe.validation.patience  # only rank zero validates, so only it has a history
        return self.processes.any(patience is not None and self.position.validations_since_best >= patience)

    def _run_epoch(self, epoch: int) -> None:
        if self.position.step == 0 and self.source.refresh_due(epoch):
            started = time.perf_counter()
            with self._interruptible():
                self.source.refresh(epoch, self.callback.stage)
            self._advance(seconds=time.perf_counter() - started)
        batches = self.source.epoch_batches(epoch)
        for step in range(self.position.step, len(batches)):
            index = StepIndex(epoch, step, self.recipe.optimizer.epochs, len(batches))
            stats = self._run_step(index, batches[step])
            epoch_stats = self.position.stats.add(stats)
            self._advance(seconds=stats.seconds, step=step + 1, steps_taken=index.done + 1, stats=epoch_stats)
            self.callback.on_step(stats, epoch_stats)
            self._save_or_stop()
        self._finish_epoch(epoch)

    def _run_step(self, index: StepIndex, query_Q: NDArray[np.int64]) -> StepStats:
        started = time.perf_counter()
        with self._interruptible():  # a step can be abandoned until it changes weights
            batch = self.source.device_batch(index.epoch, index.step, query_Q)
            losses = self.training_step.backward(batch, index)
        rates = self.training_step.update(index)
        return StepStats(
            index=index, losses=losses, rates=rates,
            queries=batch.n_queries, labels=batch.n_labels, positives=batch.n_positives,
            seconds=time.perf_counter() - started,
            memory_bytes=resident_bytes(), gpu_bytes=gpu_bytes(self.training_step.device),
        )  # fmt: skip

    def _finish_epoch(self, epoch: int) -> None:
        every, last = self.recipe.validation.every_epochs, epoch + 1 == self.recipe.optimizer.epochs
        position = self.position
        next_epoch: dict[str, Any] = {"epoch": epoch + 1, "step": 0, "stats": EpochStats()}
        self.average.update(epoch + 1)
        record, best = None, position.best
        if (epoch + 1) % every == 0 or last:
            # The average is applied outside of what can be interrupted, so that it is always removed again.
            with self.average.applied(), self._interruptible(), self.callback.stage("validation") as progress:
                record = self.validator.validate(epoch + 1, position.stats, position.seconds, progress)
                best = self.checkpoints.save_if_best(record, position.best)
        if record is not None and best is not None:  # in rank zero, after a validation
            self._advance(**next_epoch, best=best, history=(*position.history, record))
            self.callback.on_validation(record, best)
        else:
            self._advance(**next_epoch)

    def _interruptible(self) -> AbstractContextManager[None]:
        """Let a signal interrupt the block. Several processes are interrupted only where they do not communicate."""
        return stopping.interruptible() if self.processes.world_size == 1 else nullcontext()

    def _advance(self, seconds: float = 0.0, **changes: Any) -> None:
        self.position = self.position.model_copy(update={**changes, "seconds": self.position.seconds + seconds})

    def _save_or_stop(self) -> None:
        stop, save_due = self.processes.any(self.should_stop()), self.processes.any(self.checkpoints.save_due)
        if stop or save_due:
            self._save_state()
        if stop:
            raise Stopped

    def _save_state(self) -> None:
        self.checkpoints.save_state(RunState(self.position, self.source.mined))
