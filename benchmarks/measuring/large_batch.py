"""Measure time and peak memory of training steps with a large batch, in a separate process.

    python -m benchmarks.measuring.large_batch DATASET MODEL BATCH_SIZE GRAD_CACHE_CHUNK STEPS THREADS

GRAD_CACHE_CHUNK is a number or `null`, which encodes all texts at once. Prints JSON: the median seconds per step and
the peak memory in MiB, including torch and the model.
"""

import json
import statistics
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.peers.process import peak_mib
from training.data.dataset import Dataset
from training.monitoring.callbacks import NullCallback
from training.optim.step_stats import EpochStats, StepStats
from training.recipe.loading import load_recipe
from training.run import train
from training.trainer import Stopped


class StepTimer(NullCallback):
    """Records the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        self.seconds.append(step.seconds)


def main() -> None:
    """Take the steps and print their cost."""
    dataset, model, batch, chunk_size, steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    recipe = load_recipe(
        "minilm",
        [
            f"encoder.model={model}", f"batching.batch_size={batch}", f"batching.grad_cache_chunk={chunk_size}",
            "batching.clustered=false", "batching.hard_negatives=0", f"optimizer.epochs={steps}",
        ],
    )  # fmt: skip
    timer = StepTimer()
    with TemporaryDirectory() as folder, suppress(Stopped):
        train(Dataset.open(Path(dataset)), recipe, Path(folder) / "run", timer,
              should_stop=lambda: len(timer.seconds) >= int(steps))  # fmt: skip
    print(json.dumps({"step_seconds": statistics.median(timer.seconds), "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
