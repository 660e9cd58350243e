"""Validation rows exclude reciprocal pairs if the source's test rows exclude theirs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from training.data import Dataset
from training.data.ragged import Ragged
from training.prepare.prepare import prepare
from training.prepare.reciprocal import label_of_text, reversed_pairs
from training.prepare.settings import PrepareSettings


def thesaurus(words: int, *, test_leaves_out: bool) -> list[dict[str, Any]]:
    """Return words on a ring, each related to two neighbours on both sides: each pair has its reverse."""
    name = "word {}".format
    rows = []
    for word in range(words):
        related = [name((word + step) % words) for step in (-2, -1, 1, 2)]
        # Labels beside the reciprocal ones, so that a row keeps a truth.
        row: dict[str, Any] = {"query": name(word), "labels": [*related, f"thing {word}"], "split": "train"}
        if word % 10 == 0:
            row |= {"split": "test", "exclude": related if test_leaves_out else []}
        rows.append(row)
    return rows


def prepared(folder: Path, rows: list[dict[str, Any]]) -> Dataset:
    source = folder / "thesaurus.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return prepare(source, folder / "out", PrepareSettings(validation=0.3))[0]


def test_validation_leaves_out_what_the_test_rows_leave_out(tmp_path: Path) -> None:
    """If this failed, epoch and weight would be chosen on pairs that the test split excludes."""
    dataset = prepared(tmp_path, thesaurus(100, test_leaves_out=True))
    train, validation = dataset.split("train"), dataset.split("validation")
    trained = {
        (text, dataset.label_texts[label])
        for text, labels in zip(train.texts, train.labels, strict=True)
        for label in labels
    }
    left_out = 0
    for text, labels, exclude in zip(validation.texts, validation.labels, validation.exclude, strict=True):
        assert not [label for label in labels if (dataset.label_texts[label], text) in trained]
        assert all((dataset.label_texts[label], text) in trained for label in exclude)
        left_out += len(exclude)
    assert left_out > 0
    notes = dataset.meta.notes
    assert notes["reciprocal_pairs_removed"] == left_out


def test_validation_keeps_reciprocal_pairs_where_the_test_rows_count_them(tmp_path: Path) -> None:
    """If this failed, a click log would lose validation labels that its test split counts."""
    validation = prepared(tmp_path, thesaurus(100, test_leaves_out=False)).split("validation")
    assert set(validation.labels.lengths) == {5}
    assert not len(validation.exclude.values)


def test_reversed_pairs_are_the_labels_that_list_the_row() -> None:
    """If this failed, labels other than the reciprocal ones would be removed from the true labels."""
    label_texts = pa.chunked_array([pa.array(["a", "b", "c"])])
    own = label_of_text(pa.chunked_array([pa.array(["a", "b", "elsewhere", "c"])]), label_texts)
    assert own.tolist() == [0, 1, -1, 2]
    labels = Ragged.from_lists([[1, 2], [0], [0, 1], [0]])
    found = reversed_pairs(own, labels, np.array([True, True, True, False]))
    assert [found[row].tolist() for row in range(4)] == [[1], [0], [], [0]]
