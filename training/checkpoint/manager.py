"""The checkpoint manager of a run: decides when to save, and saves state and best weights."""

import time
from pathlib import Path

from training.batching.training_data import TrainingData
from training.checkpoint.schema import STATE, EpochRecord
from training.checkpoint.state import RunState, restore_state, save_state
from training.checkpoint.weights import save_best_weights
from training.model.cascade import Model
from training.optim.averaging import AveragedWeights
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.divergence import require_finite_weights
from training.optim.optimizers import Optimizers
from training.recipe.schema import Recipe


class CheckpointManager:
    """Saves the run of `model`, `optimizers` and `average` in `folder`; all processes save, only rank zero writes."""

    def __init__(
        self,
        folder: Path,
        model: Model,
        optimizers: Optimizers,
        average: AveragedWeights,
        recipe: Recipe,
        data: TrainingData,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.folder, self.model, self.optimizers, self.average = folder, model, optimizers, average
        self.recipe, self.data, self.processes = recipe, data, processes
        self._saved_at = time.monotonic()

    def restore(self) -> RunState:
        """Load the saved weights and optimizer state and return the rest; a new run's state if nothing was saved.

        Raises CheckpointError if the saved state does not fit.
        """
        if not (self.folder / STATE).is_file():
            return RunState()
        return restore_state(
            self.folder, self.model, self.optimizers, self.average, self.recipe, len(self.data.train), self.processes
        )

    @property
    def save_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed since the last save; rank zero decides."""
        return self.processes.is_rank_zero and time.monotonic() - self._saved_at > 60 * self.recipe.checkpoint_minutes

    def save_state(self, state: RunState) -> None:
        """Save everything that an exact resume needs. Raises TrainingError if the weights contain NaN or Inf."""
        require_finite_weights(self.model, state.position.epoch + 1, self.processes)
        save_state(self.folder, self.model, self.optimizers, self.average, state, self.processes)
        self._saved_at = time.monotonic()

    def save_if_best(self, record: EpochRecord | None, best: EpochRecord | None) -> EpochRecord | None:
        """Save the weights if `record` has a higher score than `best`; return the better of the two records.

        All processes call it. Only rank zero has records, and it decides.
        """
        if not self.processes.any(record is not None and (best is None or record.score > best.score)):
            return best
        save_best_weights(self.folder, self.model, self.data, record, self.processes)
        return record
