"""Measure the cost of a training step: by table size, of preparing batches, and of padding.

    python benchmarks/training_cost.py [DATASET] [--labels 20000 2000000] [--dim 256] [--steps 60] [--threads 1]
                                       [--model FOLDER [--batch-size 1024]]

The part about table sizes is synthetic: models that differ only in the lengths of ψ and of the token table take steps
in alternation, and every step uses the same number of rows. The other parts measure steps of the recipe `default` on a
prepared DATASET and, with `--model` (a transformer), a large batch of the recipe `minilm` with and without GradCache.
Writes no files.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import torch
from rich.console import Console

from benchmarks.measuring.running import count
from benchmarks.measuring.systems import ROOT
from retrieval.errors import DiptychError
from retrieval.system.progress import Progress, no_progress
from training.batching.batch_source import BatchSource
from training.batching.training_data import TrainingData
from training.data.dataset import Dataset, Split
from training.data.ragged import Ragged
from training.data.token_cache import TokenizedTexts
from training.model.row_table import RowTable
from training.model.static_encoder import StaticEncoder
from training.model.transformer_encoder import MIN_TOKENS, groups_by_length
from training.model.unified import UnifiedModel
from training.monitoring.callbacks import NullCallback
from training.optim.cascade_loss import CascadeBatch
from training.optim.optimizers import Optimizers
from training.optim.step_stats import EpochStats, StepIndex, StepStats
from training.optim.training_step import DeviceBatch, TrainingStep
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe
from training.run import train
from training.trainer import Stopped

QUERIES, LABELS, TOKENS = 20_000, 20_000, 15_000  # in use, for any length of the tables
TOKENS_PER_TEXT, POSITIVES = 4, 5
WARMUP_STEPS = 5  # before the measured steps
CPU = torch.device("cpu")


def main() -> int:
    """Measure and print. Prints an error and returns 1 if the dataset or a recipe is invalid."""
    parser = argparse.ArgumentParser(description="Cost of a training step.")
    parser.add_argument(
        "dataset", type=Path, nargs="?", help="a prepared dataset (default: only the part about table sizes)"
    )
    parser.add_argument(
        "--labels", type=count, nargs="+", default=[20_000, 2_000_000], help="lengths of ψ and of the token table"
    )
    parser.add_argument("--dim", type=count, default=256)
    parser.add_argument("--steps", type=count, default=60)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--model", type=Path, help="a transformer's folder, to measure a large batch too")
    parser.add_argument("--batch-size", type=count, default=1024, help="queries of the large batch")
    options = parser.parse_args()
    if options.model and not options.dataset:
        parser.error("--model needs a DATASET")
    torch.set_num_threads(options.threads)
    console = Console(highlight=False)
    try:
        dataset = Dataset.open(options.dataset) if options.dataset else None  # fails before the long part
        step_by_table_size(console, options.labels, options.dim, options.steps)
        if dataset is not None:
            batch_preparation(console, dataset, options.steps)
        if options.model:
            large_batch(console, options)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def step_by_table_size(console: Console, lengths: list[int], dim: int, steps: int) -> None:
    """Print the step time by the length of ψ and of the token table, and the bytes per label."""
    recipe = load_recipe("default", ["batching.hard_negatives=0", "batching.clustered=false", f"encoder.dim={dim}"])
    runs = [SyntheticRun(recipe, length, dim) for length in lengths]
    seconds: list[list[float]] = [[] for _ in lengths]
    for at in range(WARMUP_STEPS + steps):
        query_Q = np.random.default_rng(at).choice(QUERIES, recipe.batching.batch_size, replace=False)
        for seconds_of_run, run in zip(seconds, runs, strict=True):
            seconds_of_run.append(run.step(StepIndex(0, at, 1, WARMUP_STEPS + steps), query_Q))
    medians = [statistics.median(seconds_of_run[WARMUP_STEPS:]) for seconds_of_run in seconds]
    console.print(f"[bold]Step time by table length[/bold] (d = {dim}, median of {steps} steps, in alternation)")
    for length, median in zip(lengths, medians, strict=True):
        console.print(
            f"  {length:>10,} labels and tokens  {1000 * median:7.1f} ms  {median / medians[0]:.2f} times the first"
        )
    for dtype in (torch.float32, torch.bfloat16):
        size = sum(tensor.nbytes for tensor in RowTable(torch.zeros(1000, dim, dtype=dtype)).state_dict().values())
        console.print(f"  ψ and its state, {str(dtype).removeprefix('torch.'):>8}: {size // 1000:,} bytes per label")


class SyntheticRun:
    """Steps of a model whose ψ and token table have `length` rows; batches use equally many rows for any length."""

    def __init__(self, recipe: Recipe, length: int, dim: int) -> None:
        encoder = StaticEncoder(RowTable(torch.randn(length, dim) / dim**0.5), torch.zeros(length, 1), 50_000, 0.5)
        model = UnifiedModel(encoder, recipe, length)
        self.source = BatchSource(recipe, synthetic_data(length), model, CPU)
        self.training_step = TrainingStep(model, Optimizers(model, recipe.optimizer), recipe, CPU)

    def step(self, index: StepIndex, query_Q: np.ndarray) -> float:
        """Take one step; return its seconds."""
        started = time.perf_counter()
        self.training_step.backward(self.source.device_batch(index.epoch, index.step, query_Q), index)
        self.training_step.update(index)
        return time.perf_counter() - started


def synthetic_data(length: int) -> TrainingData:
    """Return training data with `length` labels and tokens; the same number of them occurs for any length."""
    generator = np.random.default_rng(0)
    label_rows, token_rows = _spread(LABELS, length), _spread(TOKENS, length)
    labels = Ragged.from_lengths(
        label_rows[generator.integers(0, len(label_rows), QUERIES * POSITIVES)], np.full(QUERIES, POSITIVES)
    )
    nothing = Split.from_lists([], [], Ragged.empty(0), Ragged.empty(0))
    ids = [str(row) for row in range(QUERIES)]
    return TrainingData(
        train=Split.from_lists(ids, ids, labels, Ragged.empty(QUERIES)),
        train_tokens=_texts(QUERIES, token_rows, generator),
        target_V=None,
        n_queries=QUERIES,
        label_queries_per_epoch=0,
        validation=nothing,
        validation_tokens=_texts(0, token_rows, generator),
        label_tokens=_texts(length, token_rows, generator),
        positives_L=np.bincount(labels.values, minlength=length),
        inverse_propensity_L=np.ones(length),
    )


def _spread(rows: int, length: int) -> np.ndarray:
    """Return at most `rows` row numbers, spread evenly over a table."""
    return np.unique(np.linspace(0, length - 1, min(rows, length)).astype(np.int32))


def _texts(texts: int, token_rows: np.ndarray, generator: np.random.Generator) -> TokenizedTexts:
    ids = token_rows[generator.integers(0, len(token_rows), texts * TOKENS_PER_TEXT)]
    return TokenizedTexts(Ragged.from_lengths(ids, np.full(texts, TOKENS_PER_TEXT)), 0)


def batch_preparation(console: Console, dataset: Dataset, steps: int) -> None:
    """Print the share of batch preparation in a step, the share of refreshes, and a transformer's padding."""
    timer, source = StepTimer(WARMUP_STEPS + steps), timed_source()
    recipe = load_recipe("default", [f"optimizer.epochs={WARMUP_STEPS + steps}"])  # at least one step per epoch
    with TemporaryDirectory() as folder, suppress(Stopped):
        train(dataset, recipe, Path(folder) / "run", timer, should_stop=timer.is_complete, source_type=source)
    step, preparation = (statistics.median(seconds[WARMUP_STEPS:]) for seconds in (timer.step_seconds, source.seconds))
    console.print(f"[bold]{dataset.meta.name}, recipe default[/bold], median of {steps} steps")
    console.print(f"  a step takes {1000 * step:.1f} ms; preparing its batch is {100 * preparation / step:.1f} % of it")
    refresh, steps_between = timer.refresh_seconds, recipe.batching.refresh_epochs * timer.steps_per_epoch
    share = refresh / (refresh + steps_between * step)
    console.print(
        f"  clustering and mining take {refresh:.2f} s every {steps_between} steps, {100 * share:.1f} % of the time"
    )
    console.print(f"  padding in batches of a transformer: {100 * statistics.median(source.padding):.1f} %")


def large_batch(console: Console, options: argparse.Namespace) -> None:
    """Print time and memory of a transformer's step, with and without GradCache."""
    console.print(f"[bold]A batch of {options.batch_size:,} queries, recipe minilm[/bold], each run in a new process")
    for chunk_size in ("null", "256", "64"):
        command = [sys.executable, "-m", "benchmarks.measuring.large_batch", str(options.dataset.resolve())]
        command += [str(options.model.resolve()), str(options.batch_size), chunk_size, "3", str(options.threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        cost = json.loads(output)
        name = "without GradCache" if chunk_size == "null" else f"GradCache, {chunk_size} texts per chunk"
        console.print(f"  {name:<30} {cost['step_seconds']:6.1f} s per step  {cost['peak_mib']:7,.0f} MiB peak memory")


class StepTimer(NullCallback):
    """Records the seconds of the first `steps` steps of a run, and of clustering and mining before them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.steps_per_epoch, self.refresh_seconds = 1, 0.0
        self.step_seconds: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        started = time.perf_counter()
        yield no_progress
        if name == "clustering and mining":
            self.refresh_seconds = time.perf_counter() - started

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        self.step_seconds.append(step.seconds)
        self.steps_per_epoch = step.index.steps_per_epoch

    def is_complete(self) -> bool:
        return len(self.step_seconds) >= self.steps


class TimedSource(BatchSource):
    """A batch source that records the seconds per batch, and the share of padding if a transformer encoded it."""

    seconds: ClassVar[list[float]]
    padding: ClassVar[list[float]]

    def device_batch(self, epoch: int, step: int, query_Q: np.ndarray) -> DeviceBatch | CascadeBatch:
        started = time.perf_counter()
        batch = super().device_batch(epoch, step, query_Q)
        self.seconds.append(time.perf_counter() - started)
        self.padding.append(_padding(batch.texts.lengths_N))
        return batch


def timed_source() -> type[TimedSource]:
    """Return a new class, so that each run has its own records."""
    return type("TimedSource", (TimedSource,), {"seconds": [], "padding": []})


def _padding(lengths_B: np.ndarray) -> float:
    """Return the share of a batch that is padding if a transformer encodes it on a CPU."""
    sorted_B = np.sort(lengths_B).tolist()
    computed = sum((stop - at) * sorted_B[stop - 1] for at, stop in groups_by_length(sorted_B, MIN_TOKENS["cpu"]))
    return float(1 - sum(sorted_B) / computed)


if __name__ == "__main__":
    sys.exit(main())
