"""A small cascade on a tiny BERT: its recipe and dataset."""

from pathlib import Path

from tests.support.bundles import WORDS
from tests.support.training.checkpoints import write_words
from tests.support.training.pretrained import save_tiny_bert
from training.data.dataset import Dataset
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe

SMALL_CASCADE = [
    "encoder.max_tokens=8",
    "cascade={clusters: [4, 16], layers: [[1, 2], [1], [2]], shortlist: [3, 6], dropout: [0.1, 0.1, 0.2], "
    "loss_weights: [1.0, 1.0, 2.0], warmup_epochs: 1.0, final_epochs: 1.0}",
    "batching.batch_size=64",
    "optimizer.epochs=3",
    "optimizer.encoder_lr=1e-3",
    "optimizer.heads_lr=1e-2",
    "validation.every_epochs=1",
]


def cascade_recipe(folder: Path, *overrides: str) -> Recipe:
    """Return a recipe of three levels that trains in seconds; `folder` has or gets its transformer of two layers."""
    bert = folder / "bert"
    if not bert.is_dir():
        save_tiny_bert(bert, WORDS)
    return load_recipe("systems/cascadexml", [f"encoder.model={bert}", *SMALL_CASCADE, *overrides])


def cascade_dataset(folder: Path) -> Dataset:
    """Write a dataset of 300 labels, of which a tenth have no training query; training queries have exclusions."""
    return write_words(folder / "dataset")
