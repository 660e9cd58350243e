"""What a training step costs: whatever the tables' size, on preparing instead of computing, and on padding.

    python benchmarks/training_cost.py [DATASET] [--labels 20000 2000000] [--dim 256] [--steps 60] [--threads 1]

The tables' part is synthetic: trainers whose ψ and token table differ in length alone, so that every step touches as
many rows, take steps in turn. The other parts look at the steps of the recipe `default` on a prepared DATASET. Nothing
is written.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console

from benchmarks.measuring.running import count
from retrieval.errors import DiptychError
from training.data.dataset import Dataset, Split
from training.data.ragged import Ragged
from training.listener import Nobody
from training.material import Material
from training.model import TEXTS_AT_ONCE, UnifiedModel
from training.recipe import Recipe, load_recipe
from training.rowwise import RowTable
from training.run import train
from training.static_encoder import StaticEncoder
from training.tally import Step, Tally
from training.tokens import TokenizedTexts
from training.trainer import Prepared, Stopped, Trainer

QUERIES, LABELS, TOKENS = 20_000, 20_000, 15_000  # that a table's rows are touched for, whatever its length
TOKENS_A_TEXT, POSITIVES = 4, 5
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(highlight=False)
    try:
        dataset = Dataset.open(options.dataset) if options.dataset else None  # refused before the long part
        tables(console, options.labels, options.dim, options.steps)
        if dataset is not None:
            preparing(console, dataset, options.steps)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def tables(console: Console, lengths: list[int], dim: int, steps: int) -> None:
    """Step time by the length of ψ and of the token table, steps in turn; bytes a label."""
    recipe = load_recipe("default", ["batching.hard_negatives=0", "batching.clustered=false", f"encoder.dim={dim}"])
    with TemporaryDirectory() as folder:
        trainers = [synthetic_trainer(recipe, length, dim, Path(folder)) for length in lengths]
        seconds: list[list[float]] = [[] for _ in lengths]
        for at in range(WARM + steps):
            query_Q = np.random.default_rng(at).choice(QUERIES, recipe.batching.batch_size, replace=False)
            for taken, trainer in zip(seconds, trainers, strict=True):
                taken.append(trainer.step(0, at, WARM + steps, query_Q).seconds)
    medians = [statistics.median(taken[WARM:]) for taken in seconds]
    console.print(f"[bold]A step by the length of its tables[/bold] (d = {dim}, median of {steps}, in turn)")
    for length, median in zip(lengths, medians, strict=True):
        console.print(
            f"  {length:>10,} labels and tokens  {1000 * median:7.1f} ms  {median / medians[0]:.2f} of the first"
        )
    for dtype in (torch.float32, torch.bfloat16):
        held = sum(tensor.nbytes for tensor in RowTable(torch.zeros(1000, dim, dtype=dtype)).state_dict().values())
        console.print(f"  ψ and its state, {str(dtype).removeprefix('torch.'):>8}: {held // 1000:,} bytes a label")


def synthetic_trainer(recipe: Recipe, length: int, dim: int, folder: Path) -> Trainer:
    """A trainer whose ψ and token table have `length` rows, of which batches touch the same number whatever it is."""
    generator = np.random.default_rng(0)
    label_rows, token_rows = _spread(LABELS, length), _spread(TOKENS, length)
    labels = Ragged.from_lengths(
        label_rows[generator.integers(0, len(label_rows), QUERIES * POSITIVES)], np.full(QUERIES, POSITIVES)
    )
    nothing = Split.from_lists([], [], Ragged.empty(0), Ragged.empty(0))
    ids = [str(row) for row in range(QUERIES)]
    material = Material(
        train=Split.from_lists(ids, ids, labels, Ragged.empty(QUERIES)),
        train_tokens=_texts(QUERIES, token_rows, generator),
        target_V=None,
        queries=QUERIES,
        label_queries=0,
        validation=nothing,
        validation_tokens=_texts(0, token_rows, generator),
        label_tokens=_texts(length, token_rows, generator),
        positives_L=np.bincount(labels.values, minlength=length),
        inverse_propensity_L=np.ones(length),
    )
    encoder = StaticEncoder(RowTable(torch.randn(length, dim) / dim**0.5), torch.zeros(length, 1), 50_000, 0.5)
    model = UnifiedModel(encoder, recipe, length)
    return Trainer(recipe, material, model, folder, CPU, Nobody())


def _spread(rows: int, length: int) -> np.ndarray:
    """At most `rows` row numbers, evenly over a table."""
    return np.unique(np.linspace(0, length - 1, min(rows, length)).astype(np.int32))


def _texts(texts: int, token_rows: np.ndarray, generator: np.random.Generator) -> TokenizedTexts:
    ids = token_rows[generator.integers(0, len(token_rows), texts * TOKENS_A_TEXT)]
    return TokenizedTexts(ids, np.arange(texts + 1, dtype=np.int64) * TOKENS_A_TEXT, 0)


def preparing(console: Console, dataset: Dataset, steps: int) -> None:
    """How much of a run's step is not computing; how much of a transformer's batch would be padding."""
    watched = Watched(WARM + steps)
    recipe = load_recipe("default", [f"optimizer.epochs={WARM + steps}"])  # as many steps are in them
    with TemporaryDirectory() as folder, patch.object(Trainer, "prepare", watched.in_its_place()), suppress(Stopped):
        train(dataset, recipe, Path(folder) / "run", watched, should_stop=watched.enough)
    whole, part = (statistics.median(taken[WARM:]) for taken in (watched.whole, watched.preparing))
    console.print(f"[bold]{dataset.meta.name}, recipe default[/bold], median of {steps} steps")
    console.print(f"  a step takes {1000 * whole:.1f} ms, of which preparing its batch {100 * part / whole:.1f} %")
    console.print(
        f"  padding of these texts as a transformer learns them: {100 * statistics.median(watched.padding):.1f} %"
    )


class Watched(Nobody):
    """A listener that measures a run's first steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.original = steps, Trainer.prepare
        self.whole: list[float] = []
        self.preparing: list[float] = []
        self.padding: list[float] = []

    def in_its_place(self) -> Callable[..., Prepared]:
        """`Trainer.prepare`, measured."""

        def prepare(trainer: Trainer, *arguments: Any) -> Prepared:
            started = time.perf_counter()
            prepared = self.original(trainer, *arguments)
            self.preparing.append(time.perf_counter() - started)
            self.padding.append(_padding(prepared.texts.lengths_N))
            return prepared

        return prepare

    def stepped(self, step: Step, epoch: Tally) -> None:
        self.whole.append(step.seconds)

    def enough(self) -> bool:
        return len(self.whole) >= self.steps


def _padding(lengths_B: np.ndarray) -> float:
    """Share of a batch that is padding when texts of like length are learned together."""
    groups = np.split(np.sort(lengths_B), range(TEXTS_AT_ONCE, len(lengths_B), TEXTS_AT_ONCE))
    return 1 - float(lengths_B.sum()) / sum(len(group) * int(group[-1]) for group in groups)


if __name__ == "__main__":
    sys.exit(main())
