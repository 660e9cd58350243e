"""Labels that cannot be distinguished, from one label to zero vectors: they export, and every query is answered."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from export.build import export
from export.index.pca import fit_projection
from export.job import ExportSettings
from retrieval import open_bundle
from retrieval.open import open_store
from retrieval.search.indexes import Vectors
from tests.support.bundles import WORDS
from tests.support.listener import RecordingCallback
from training.data.dataset import DatasetMeta
from training.prepare.writing import write_dataset
from training.recipe.loading import load_recipe
from training.run import train

SMALL = ["optimizer.epochs=1", "encoder.dim=16", "encoder.vocabulary_size=64", "batching.batch_size=16"]
ONE = np.random.default_rng(0).standard_normal(24).astype(np.float32)


@pytest.mark.parametrize(
    "vectors_LD",
    [
        ONE[None],
        np.repeat(ONE[None], 2, axis=0),
        np.repeat(ONE[None], 5_000, axis=0),
        np.repeat(1e-4 * ONE[None], 333, axis=0),
        np.repeat(ONE[None], 300, axis=0) * (1 + 1e-7 * np.arange(300)[:, None]).astype(np.float32),
        np.concatenate([np.repeat(ONE[None, :12], 99, axis=0), np.eye(99, 12, dtype=np.float32)], axis=1),
        np.concatenate([np.eye(99, 12, dtype=np.float32), np.zeros((99, 12), np.float32)], axis=1),
        np.zeros((1, 24), np.float32),
        np.zeros((500, 24), np.float32),
    ],
)
@pytest.mark.filterwarnings("error")
def test_projection_of_equal_labels(vectors_LD: Vectors) -> None:
    """If it fails, variance below zero by rounding becomes NaN, and export ends in a traceback."""
    projection_DW, energy = fit_projection(np.asarray(vectors_LD, np.float32), 12)
    assert 0.0 <= energy <= 1.0
    np.testing.assert_allclose(projection_DW.T @ projection_DW, np.eye(projection_DW.shape[1]), atol=1e-5)


@pytest.mark.parametrize(
    "texts",
    [["red shoes"], ["red shoes"] * 2, ["red shoes"] * 130, ["red shoes", "light rain"]],
    ids=["one label", "two of one text", "many of one text", "two"],
)
def test_every_degenerate_set_of_labels_exports(tmp_path: Path, texts: list[str]) -> None:
    """If it fails, a catalogue with one label, or with placeholder texts, cannot be served."""
    queries = [f"{one} {other}" for one in WORDS[:6] for other in WORDS[6:]]
    truths = pa.array([[row % len(texts)] for row in range(len(queries))], pa.list_(pa.int32()))
    ids = [f"q{row}" for row in range(len(queries))]
    split = pa.table({"id": ids, "text": queries, "labels": truths})
    labels = pa.table({"id": [f"l{row}" for row in range(len(texts))], "text": texts})
    halves = {"train": split.slice(0, 24), "validation": split.slice(24)}
    dataset = write_dataset(tmp_path / "dataset", labels, halves, DatasetMeta(name="few"))  # type: ignore[arg-type]
    train(dataset, load_recipe("default", SMALL), tmp_path / "run", RecordingCallback())
    built = export(tmp_path / "run", open_store(tmp_path / "store"), settings=ExportSettings(m=8, threads=1))
    with open_bundle(built.path, threads=1) as retriever:
        for weight in (0.0, 0.5, 1.0):
            (hits,) = retriever.search(["red shoes"], 200, weight=weight)
            assert sorted(hit.id for hit in hits) == sorted(labels["id"].to_pylist())
            assert np.isfinite([hit.score for hit in hits]).all()
