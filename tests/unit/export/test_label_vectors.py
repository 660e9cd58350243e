"""Labels of special kinds: with the same text, with a zero vector, untrained."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from export import label_vectors
from export.job import label_facts
from export.label_vectors import count_zeros
from retrieval.bundle.manifest import VECTORS
from tests.support.training.checkpoints import make_checkpoint
from training.checkpoint.opened import load_checkpoint


def test_zeros_are_counted_in_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a manifest does not count labels that no query can find."""
    monkeypatch.setattr(label_vectors, "LABELS_PER_CHUNK", 4)
    vectors_LD = np.eye(11, 16, dtype=np.float32)
    vectors_LD[[0, 5, 10]] = 0
    np.save(tmp_path / VECTORS, vectors_LD)
    assert count_zeros(tmp_path / VECTORS) == 3


def test_the_manifest_counts_kinds_of_labels(tmp_path: Path) -> None:
    """If it fails, the manifest miscounts duplicate texts, trained labels or imputed labels."""
    opened = load_checkpoint(make_checkpoint(tmp_path))
    texts = opened.labels["text"].to_pylist()
    texts[7] = texts[8] = texts[2]
    at = opened.labels.schema.get_field_index("text")
    labels = opened.labels.set_column(at, "text", pa.array(texts))
    trained_L = np.arange(len(texts)) < 250
    facts = label_facts(dataclasses.replace(opened, labels=labels, trained_L=trained_L), imputed=True, zeros=0)
    assert facts.model_dump() == {"count": 300, "trained": 250, "imputed": 50, "duplicates": 2, "zeros": 0}
    cascade = label_facts(dataclasses.replace(opened, trained_L=trained_L), imputed=False, zeros=0)
    assert (cascade.trained, cascade.imputed) == (250, 0)
    nothing = label_facts(dataclasses.replace(opened, trained_L=np.zeros(300, bool)), imputed=True, zeros=0)
    assert (nothing.trained, nothing.imputed) == (0, 0), "without a trained label there is nothing to impute from"
