"""The training loop with stand-ins for its parts: order of refreshes, steps, validations and saves."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.system.progress import Progress
from tests.support.listener import RecordingCallback
from training.checkpoint.schema import EpochRecord, RunPosition
from training.checkpoint.state import RunState
from training.optim.averaging import AveragedWeights
from training.optim.step_stats import EpochStats, StepIndex
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe
from training.trainer import Stopped, Trainer

RECIPE = load_recipe("default", ["optimizer.epochs=4", "batching.refresh_epochs=2", "validation.every_epochs=3"])
STEPS = 2  # per epoch
NO_AVERAGE: Any = AveragedWeights(torch.nn.Linear(1, 1), 0.0)  # type: ignore[arg-type]  # any module has weights


class Parts:
    """Batch source, training step, validator and checkpoint manager that record their calls."""

    mined, save_due = "mined", False
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.saved: list[RunState] = []

    def refresh_due(self, epoch: int) -> bool:
        return epoch % RECIPE.batching.refresh_epochs == 0

    def refresh(self, epoch: int, stage: object) -> None:
        self.calls.append(f"refresh {epoch}")

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        return [np.arange(3)] * STEPS

    def device_batch(self, epoch: int, step: int, query_Q: np.ndarray) -> Any:
        return SimpleNamespace(n_queries=len(query_Q), n_labels=1, n_positives=1)

    def backward(self, batch: object, index: StepIndex) -> dict[str, float]:
        return {"classifier/query_to_label/bce": 1.0}

    def update(self, index: StepIndex) -> dict[str, float]:
        self.calls.append(f"step {index.epoch}.{index.step}")
        return {}

    def validate(self, epoch: int, stats: EpochStats, seconds: float, progress: Progress) -> EpochRecord:
        self.calls.append(f"validate {epoch}")
        return EpochRecord(
            epoch=epoch, loss=stats.loss, seconds=seconds, score=-epoch, classifier_weight=0.5, popularity=0.0,
            cone_fraction=0.5, metrics={}, stats=stats,
        )  # fmt: skip

    def save_if_best(self, record: EpochRecord, best: EpochRecord | None) -> EpochRecord:
        return record if best is None or record.score > best.score else best

    def save_state(self, state: RunState) -> None:
        self.calls.append("save")
        self.saved.append(state)


def trainer(parts: Any, position: RunPosition, stop_after: int = 10**9, recipe: Recipe = RECIPE) -> Trainer:
    steps = iter(range(1, 10**9))
    return Trainer(
        recipe, parts, parts, parts, NO_AVERAGE, parts, RecordingCallback(), position, lambda: next(steps) >= stop_after
    )  # fmt: skip


def test_refreshes_steps_and_validations_have_the_order_of_the_algorithm() -> None:
    """If it fails, clusters are not refreshed in time, or the last epoch is not validated."""
    parts = Parts()
    position = trainer(parts, RunPosition()).run()
    assert parts.calls == [
        "refresh 0", "step 0.0", "step 0.1", "step 1.0", "step 1.1",
        "refresh 2", "step 2.0", "step 2.1", "validate 3", "step 3.0", "step 3.1", "validate 4", "save",
    ]  # fmt: skip
    assert (position.epoch, position.step, position.steps_taken) == (4, 0, 4 * STEPS)
    assert [record.epoch for record in position.history] == [3, 4]
    assert position.best is position.history[0]
    assert position.history[0].stats.steps == STEPS, "the statistics of an epoch include other epochs"


def test_training_ends_when_validation_no_longer_improves() -> None:
    """If it fails, small datasets train for many epochs after the best one, or `patience` counts epochs."""
    recipe = load_recipe("default", ["optimizer.epochs=12", "validation.every_epochs=2", "validation.patience=2"])
    parts = Parts()
    position = trainer(parts, RunPosition(), recipe=recipe).run()
    assert [record.epoch for record in position.history] == [2, 4, 6]
    assert position.best is position.history[0]
    parts.calls.clear()
    assert trainer(parts, position, recipe=recipe).run().epoch == 6
    assert parts.calls == ["save"], "a finished run that is resumed trains on"


def test_training_without_patience_runs_to_the_last_epoch() -> None:
    """If it fails, published recipes end before their last epoch."""
    recipe = load_recipe("default", ["optimizer.epochs=12", "validation.every_epochs=1", "validation.patience=null"])
    assert trainer(Parts(), RunPosition(), recipe=recipe).run().epoch == 12


def test_a_stopped_run_continues_with_its_next_step() -> None:
    """If it fails, a resumed run repeats or skips a step, or refreshes in the middle of an epoch."""
    parts = Parts()
    with pytest.raises(Stopped):
        trainer(parts, RunPosition(), stop_after=5).run()
    assert parts.calls[-2:] == ["step 2.0", "save"]
    saved = parts.saved[-1].position
    assert (saved.epoch, saved.step, saved.stats.steps) == (2, 1, 1)
    parts.calls.clear()
    trainer(parts, saved).run()
    assert parts.calls == ["step 2.1", "validate 3", "step 3.0", "step 3.1", "validate 4", "save"]
    assert parts.saved[-1].mined == "mined"


def test_the_state_is_saved_whenever_a_save_is_due() -> None:
    """If it fails, a crash loses more than `checkpoint_minutes` of training."""
    parts = Parts()
    parts.save_due = True
    trainer(parts, RunPosition()).run()
    assert parts.calls.count("save") == 4 * STEPS + 1
