"""A small checkpoint, trained in seconds: queries of words whose labels share two words with them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.bundles import WORDS, label_texts
from tests.support.command import run
from tests.support.listener import RecordingCallback
from training.data.dataset import Dataset, DatasetMeta, SplitName
from training.prepare.writing import write_dataset
from training.recipe.loading import load_recipe
from training.run import train

N_LABELS = 300
SETTINGS = [
    "optimizer.epochs=3",
    "validation.every_epochs=1",
    "encoder.dim=32",
    "encoder.vocabulary_size=64",
    "batching.batch_size=64",
    "loss.classifier.bce=0.2",  # with so little data, a lower weight does not move the classifier's rows into a cone
    "validation.weights=[0.5]",  # so that both heads and popularity affect what is exported and reported
    "validation.popularities=[0.25]",
]


def make_checkpoint(folder: Path) -> Path:
    """Prepare and train in `folder`; return the checkpoint folder. Some labels have no positive."""
    dataset = write_words(folder / "dataset")
    train(dataset, load_recipe("default", SETTINGS), folder / "checkpoint", RecordingCallback())
    return folder / "checkpoint"


def export_to_store(checkpoint: Path) -> Store:
    """Export a checkpoint to a new store next to it, activate the bundle, and return the store."""
    store = open_store(checkpoint.parent / "store")
    assert run("export", checkpoint, "--store", store.path, "--activate") == 0
    return store


def write_words(folder: Path, shared: int = 0) -> Dataset:
    """Write the dataset of `make_checkpoint`; `shared` labels without a positive have the text of the first label."""
    texts = label_texts(N_LABELS)
    texts[10 : 10 * shared + 1 : 10] = texts[:1] * shared
    draw = np.random.default_rng(1)
    splits: dict[SplitName, pa.Table] = {}
    sizes: dict[SplitName, int] = {"train": 400, "validation": 120, "test": 20}
    for name, size in sizes.items():
        queries: list[str] = []
        truths: list[list[int]] = []
        while len(queries) < size:
            words = draw.choice(WORDS, 3, replace=False).tolist()
            truth = [row for row, text in enumerate(texts) if len({*words} & {*text.split()}) >= 2 and row % 10]
            if truth:
                queries.append(" ".join(words))
                truths.append(truth)
        ids = [f"{name}-{row}" for row in range(size)]
        excludes: list[list[int]] = [[0, 5]] * size
        splits[name] = pa.table({"id": ids, "text": queries, "labels": _lists(truths), "exclude": _lists(excludes)})
    labels = pa.table({"id": [f"w{row}" for row in range(N_LABELS)], "text": texts, "market": ["US"] * N_LABELS})
    return write_dataset(folder, labels, splits, DatasetMeta(name="words & more"))


def _lists(rows: list[list[int]]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.int32()))
