"""Pairs learned by our trainer, for pairs_per_second.py, in a process of its own.

    python -m benchmarks.measuring.pairs_process TASK OUT

The recipe systems/dpr with a transformer: one positive a query, softmax over the positives of the batch, AdamW over the
whole encoder, float32. `training.run.train` runs as it does for a user, and is left after the last measured step.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.peers.watched_steps import StepTask, StepWatch
from retrieval.errors import DiptychError
from training.data.dataset import Dataset
from training.model import pretrained
from training.monitoring.callbacks import NullCallback
from training.optim.step_stats import EpochStats, StepStats
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe, TransformerEncoderRecipe
from training.run import train


class Enough(Exception):
    """The last measured step has been taken."""


class Steps(NullCallback):
    """Tells the watch of every step; ends the run after the last one, without the state that a stop would save."""

    def __init__(self, watch: StepWatch, enough: int) -> None:
        self.watch, self.enough = watch, enough

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        """Note the step."""
        self.watch.step_ended()
        if step.index.done + 1 >= self.enough:
            raise Enough


def recipe_of(task: StepTask) -> Recipe:
    """systems/dpr with the task's encoder and batches; RecipeError when they do not go together."""
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


def learn(folder: Path, task: StepTask) -> StepWatch:
    """Take the task's steps on folder/dataset."""
    watch, load = StepWatch(), pretrained.transformer

    def watched(choice: TransformerEncoderRecipe) -> Any:
        encoder: Any = load(choice)
        # Its tokens are looked up beforehand, for all groups of a batch at once; the mask has a group's own shape.
        encoder.register_forward_pre_hook(
            lambda module, arguments, named: watch.reads(module, (named["attention_mask"],)), with_kwargs=True
        )
        return encoder

    listener, dataset = Steps(watch, task.warm + task.steps), Dataset.open(folder / "dataset")
    with TemporaryDirectory() as run, patch.object(pretrained, "transformer", watched), suppress(Enough):
        train(dataset, recipe_of(task), Path(run) / "run", listener, device="cpu")
    return watch


def main() -> int:
    """Learn the task's steps and write what they took to OUT; an error is one sentence and code 1."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    task = StepTask.read(folder)
    torch.set_num_threads(task.threads)
    try:
        watch = learn(folder, task)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    watch.write(out, task, ("diptych", "torch", "transformers", "tokenizers"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
