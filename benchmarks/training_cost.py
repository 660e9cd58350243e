"""What a training step costs: whatever the tables' size, on preparing instead of computing, and on padding.

    python benchmarks/training_cost.py [DATASET] [--labels 20000 2000000] [--dim 256] [--steps 60] [--threads 1]
                                       [--model FOLDER [--batch-size 1024]]

The tables' part is synthetic: trainers whose ψ and token table differ in length alone, so that every step touches as
many rows, take steps in turn. The other parts look at the steps of the recipe `default` on a prepared DATASET, and with
`--model`, a transformer, at a large batch of the recipe `minilm` at once and in two passes. Nothing is written.
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
from training.optim.optimizers import Optimizers
from training.optim.step_stats import EpochStats, StepIndex, StepStats
from training.optim.training_step import DeviceBatch, TrainingStep
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe
from training.run import train
from training.trainer import Stopped

QUERIES, LABELS, TOKENS = 20_000, 20_000, 15_000  # that a table's rows are touched for, whatever its length
TOKENS_PER_TEXT, POSITIVES = 4, 5
WARM = 5  # steps before the measured ones
CPU = torch.device("cpu")


def main() -> int:
    """Measure and print; an error is one sentence and code 1."""
    parser = argparse.ArgumentParser(description="What a training step costs.")
    parser.add_argument("dataset", type=Path, nargs="?", help="a prepared dataset (default: the tables' part alone)")
    parser.add_argument("--labels", type=count, nargs="+", default=[20_000, 2_000_000], help="lengths of ψ")
    parser.add_argument("--dim", type=count, default=256)
    parser.add_argument("--steps", type=count, default=60)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--model", type=Path, help="a transformer's folder: also the memory of a large batch")
    parser.add_argument("--batch-size", type=count, default=1024, help="queries of that batch")
    options = parser.parse_args()
    if options.model and not options.dataset:
        parser.error("--model needs a DATASET to take texts from")
    torch.set_num_threads(options.threads)
    console = Console(highlight=False)
    try:
        dataset = Dataset.open(options.dataset) if options.dataset else None  # refused before the long part
        tables(console, options.labels, options.dim, options.steps)
        if dataset is not None:
            preparing(console, dataset, options.steps)
        if options.model:
            large_batch(console, options)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def tables(console: Console, lengths: list[int], dim: int, steps: int) -> None:
    """Step time by the length of ψ and of the token table, steps in turn; bytes a label."""
    recipe = load_recipe("default", ["batching.hard_negatives=0", "batching.clustered=false", f"encoder.dim={dim}"])
    runs = [SyntheticRun(recipe, length, dim) for length in lengths]
    seconds: list[list[float]] = [[] for _ in lengths]
    for at in range(WARM + steps):
        query_Q = np.random.default_rng(at).choice(QUERIES, recipe.batching.batch_size, replace=False)
        for taken, run in zip(seconds, runs, strict=True):
            taken.append(run.step(StepIndex(0, at, 1, WARM + steps), query_Q))
    medians = [statistics.median(taken[WARM:]) for taken in seconds]
    console.print(f"[bold]A step by the length of its tables[/bold] (d = {dim}, median of {steps}, in turn)")
    for length, median in zip(lengths, medians, strict=True):
        console.print(
            f"  {length:>10,} labels and tokens  {1000 * median:7.1f} ms  {median / medians[0]:.2f} of the first"
        )
    for dtype in (torch.float32, torch.bfloat16):
        held = sum(tensor.nbytes for tensor in RowTable(torch.zeros(1000, dim, dtype=dtype)).state_dict().values())
        console.print(f"  ψ and its state, {str(dtype).removeprefix('torch.'):>8}: {held // 1000:,} bytes a label")


class SyntheticRun:
    """Steps of a model whose ψ and token table have `length` rows; batches touch the same number of rows for any."""

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
    """Training data with `length` labels and tokens, of which the same number occurs for any length."""
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
    """At most `rows` row numbers, evenly over a table."""
    return np.unique(np.linspace(0, length - 1, min(rows, length)).astype(np.int32))


def _texts(texts: int, token_rows: np.ndarray, generator: np.random.Generator) -> TokenizedTexts:
    ids = token_rows[generator.integers(0, len(token_rows), texts * TOKENS_PER_TEXT)]
    return TokenizedTexts(Ragged.from_lengths(ids, np.full(texts, TOKENS_PER_TEXT)), 0)


def preparing(console: Console, dataset: Dataset, steps: int) -> None:
    """How much of a run's step is not computing; how much of a transformer's batch would be padding."""
    watched, source = Watched(WARM + steps), timed_source()
    recipe = load_recipe("default", [f"optimizer.epochs={WARM + steps}"])  # as many steps are in them
    with TemporaryDirectory() as folder, suppress(Stopped):
        train(dataset, recipe, Path(folder) / "run", watched, should_stop=watched.enough, source_type=source)
    whole, part = (statistics.median(taken[WARM:]) for taken in (watched.whole, source.seconds))
    console.print(f"[bold]{dataset.meta.name}, recipe default[/bold], median of {steps} steps")
    console.print(f"  a step takes {1000 * whole:.1f} ms, of which preparing its batch {100 * part / whole:.1f} %")
    refresh, steps_between = watched.refresh_seconds, recipe.batching.refresh_epochs * watched.steps_per_epoch
    share = refresh / (refresh + steps_between * whole)
    console.print(
        f"  clustering and mining take {refresh:.2f} s every {steps_between} steps, {100 * share:.1f} % of the time"
    )
    console.print(
        f"  padding of these texts as a transformer learns them: {100 * statistics.median(source.padding):.1f} %"
    )


def large_batch(console: Console, options: argparse.Namespace) -> None:
    """Time and memory of a transformer's step, all texts at once and in two passes of a few texts each."""
    console.print(f"[bold]A batch of {options.batch_size:,} queries, recipe minilm[/bold], each in its own process")
    for at_once in ("null", "256", "64"):
        command = [sys.executable, "-m", "benchmarks.measuring.large_batch", str(options.dataset.resolve())]
        command += [str(options.model.resolve()), str(options.batch_size), at_once, "3", str(options.threads)]
        told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        found = json.loads(told)
        named = "all texts at once" if at_once == "null" else f"{at_once} texts at once, two passes"
        console.print(f"  {named:<30} {found['step_seconds']:6.1f} s a step  {found['peak_mib']:7,.0f} MiB at most")


class Watched(NullCallback):
    """A callback that measures a run's first steps, and clustering and mining before them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.steps_per_epoch, self.refresh_seconds = 1, 0.0
        self.whole: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        started = time.perf_counter()
        yield no_progress
        if name == "clustering and mining":
            self.refresh_seconds = time.perf_counter() - started

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        self.whole.append(step.seconds)
        self.steps_per_epoch = step.index.steps_per_epoch

    def enough(self) -> bool:
        return len(self.whole) >= self.steps


def timed_source() -> type[BatchSource]:
    """A batch source that measures how long a batch takes to build, and how much of it would be padding."""

    class TimedSource(BatchSource):
        seconds: ClassVar[list[float]] = []
        padding: ClassVar[list[float]] = []

        def device_batch(self, epoch: int, step: int, query_Q: np.ndarray) -> DeviceBatch:
            started = time.perf_counter()
            batch = super().device_batch(epoch, step, query_Q)
            self.seconds.append(time.perf_counter() - started)
            self.padding.append(_padding(batch.texts.lengths_N))
            return batch

    return TimedSource


def _padding(lengths_B: np.ndarray) -> float:
    """Share of a batch that is padding when a transformer learns it on a CPU."""
    sorted_B = np.sort(lengths_B).tolist()
    computed = sum((stop - at) * sorted_B[stop - 1] for at, stop in groups_by_length(sorted_B, MIN_TOKENS["cpu"]))
    return 1 - sum(sorted_B) / computed


if __name__ == "__main__":
    sys.exit(main())
