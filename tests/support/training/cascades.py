"""A small checkpoint of a cascade, trained in seconds on the dataset of words with an untrained transformer."""

from pathlib import Path

from tests.support.bundles import WORDS
from tests.support.listener import RecordingCallback
from tests.support.training.checkpoints import write_words
from tests.support.training.pretrained import save_tiny_bert
from training.recipe.loading import load_recipe
from training.run import train

SETTINGS = [
    "encoder.max_tokens=16",
    "cascade.clusters=[4,16]",
    "cascade.layers=[[1,2],[2],[2]]",
    "cascade.shortlist=[2,6]",
    "cascade.dropout=[0.0,0.0,0.0]",
    "cascade.loss_weights=[1.0,1.0,1.0]",
    "cascade.projection_dropout=0.0",
    "optimizer.epochs=12",
    "optimizer.encoder_lr=1.0e-3",
    "optimizer.heads_lr=1.0e-2",
    "validation.every_epochs=4",
]


def make_cascade_checkpoint(folder: Path) -> Path:
    """Prepare and train in `folder`; return the checkpoint folder. Some labels have no positive."""
    bert = save_tiny_bert(folder / "bert", WORDS)
    recipe = load_recipe("systems/cascadexml", [f"encoder.model={bert}", *SETTINGS])
    train(write_words(folder / "dataset"), recipe, folder / "checkpoint", RecordingCallback())
    return folder / "checkpoint"
