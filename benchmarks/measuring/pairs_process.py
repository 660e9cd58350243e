"""Train on pairs with Diptych, for pairs_per_second.py, in a separate process.

    python -m benchmarks.measuring.pairs_process TASK OUT

The recipe is systems/dpr with a transformer: one positive per query, softmax over the positives of the batch, AdamW for
all weights, float32. `training.run.train` runs as usual and is interrupted after the last measured step.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.peers.watched_steps import StepRecorder, StepTask
from retrieval.errors import DiptychError
from training.data.dataset import Dataset
from training.model import pretrained
from training.monitoring.callbacks import NullCallback
from training.optim.step_stats import EpochStats, StepStats
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe
from training.recipe.sections import TransformerEncoderRecipe
from training.run import train


class LastStepDone(Exception):
    """The last measured step has ended."""


class Steps(NullCallback):
    """Records every step; ends the run after the last one, without saving its state."""

    def __init__(self, recorder: StepRecorder, steps: int) -> None:
        self.recorder, self.steps = recorder, steps

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        """Record the step."""
        self.recorder.step_ended()
        if step.index.done + 1 >= self.steps:
            raise LastStepDone


def recipe_of(task: StepTask) -> Recipe:
    """Return systems/dpr with the task's encoder and batches. Raises RecipeError if they are not valid together."""
    return load_recipe(
        "systems/dpr",
        [
            "encoder.kind=transformer",
            f"encoder.model={json.dumps(task.model)}",
            f"encoder.max_tokens={task.max_tokens}",
            f"batching.batch_size={task.batch}",
            "precision=float32",
            f"seed={task.seed}",
        ],
    )


def train_pairs(folder: Path, task: StepTask) -> StepRecorder:
    """Take the task's steps on folder/dataset."""
    recorder, load = StepRecorder(), pretrained.transformer

    def load_with_hook(choice: TransformerEncoderRecipe) -> Any:
        encoder: Any = load(choice)
        # Token vectors are looked up once for all groups of a batch; only the mask has the shape of a group.
        encoder.register_forward_pre_hook(
            lambda module, arguments, named: recorder.on_forward(module, (named["attention_mask"],)), with_kwargs=True
        )
        return encoder

    callback, dataset = Steps(recorder, task.warm + task.steps), Dataset.open(folder / "dataset")
    with TemporaryDirectory() as run, patch.object(pretrained, "transformer", load_with_hook), suppress(LastStepDone):
        train(dataset, recipe_of(task), Path(run) / "run", callback, device="cpu")
    return recorder


def main() -> int:
    """Take the task's steps and write their cost to OUT. Prints an error and returns 1 if training fails."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    task = StepTask.read(folder)
    torch.set_num_threads(task.threads)
    try:
        recorder = train_pairs(folder, task)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    recorder.write(out, task, ("diptych", "torch", "transformers", "tokenizers"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
