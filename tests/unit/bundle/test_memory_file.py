"""memory.arrow: what is written is read again, and invalid files are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval.bundle.memory_file import SCHEMA, memory_in, write_memory
from retrieval.bundle.memory_labels import MAX_LABELS_PER_QUERY, MemoryLabels
from retrieval.errors import BundleError

TEXTS = pa.array(["red shoes", "Zürich 🥾", "rain"])
LABELS = MemoryLabels(np.array([0, 2, 2, 3]), np.array([4, 0, 4], np.int32), np.array([1.0, 0.5, 0.25], np.float32))


def test_queries_are_read_as_they_were_written(tmp_path: Path) -> None:
    """If it fails, votes go to the labels of other training queries."""
    write_memory(tmp_path / "memory.arrow", TEXTS, LABELS)
    texts, labels = memory_in((tmp_path / "memory.arrow").read_bytes(), tmp_path / "memory.arrow", 3, 5)
    assert texts.to_pylist() == TEXTS.to_pylist()
    assert labels.starts_M1.tolist() == LABELS.starts_M1.tolist()
    assert labels.label_V.tolist() == LABELS.label_V.tolist()
    assert labels.weight_V.tolist() == LABELS.weight_V.tolist()


def lists(labels: list[list[int]], weights: list[list[float]]) -> MemoryLabels:
    starts_M1 = np.cumsum([0, *map(len, labels)])
    return MemoryLabels(
        starts_M1, np.array(sum(labels, []), np.int32), np.array(sum(weights, []), np.float32)  # noqa: RUF017
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (lists([[5], [], []], [[1.0], [], []]), "not one of the 5 rows"),
        (lists([[-1], [], []], [[1.0], [], []]), "not one of the 5 rows"),
        (lists([[0], [], []], [[0.0], [], []]), "a weight is not above 0"),
        (lists([[0], [], []], [[1.5], [], []]), "a weight is not above 0"),
        (lists([[0], [], []], [[float("nan")], [], []]), "a weight is not above 0"),
        (lists([[1, 1], [], []], [[1.0, 1.0], [], []]), "a query has a label twice"),
        (lists([[0] * (MAX_LABELS_PER_QUERY + 1), [], []], [[1.0] * (MAX_LABELS_PER_QUERY + 1), [], []]), "more than"),
        (lists([[0], []], [[1.0], []]), "does not have 3 queries"),
    ],
)
def test_invalid_numbers_are_refused(tmp_path: Path, labels: MemoryLabels, said: str) -> None:
    """If it fails, a hostile bundle reads beyond the label table, or one query slows down every search."""
    write_memory(tmp_path / "memory.arrow", TEXTS.slice(0, len(labels)), labels)
    with pytest.raises(BundleError, match=said):
        memory_in((tmp_path / "memory.arrow").read_bytes(), tmp_path / "memory.arrow", 3, 5)


def written(table: pa.Table, path: Path) -> bytes:
    with path.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path.read_bytes()


def test_other_columns_and_missing_values_are_refused(tmp_path: Path) -> None:
    """If it fails, a missing weight is read as any number."""
    path = tmp_path / "memory.arrow"
    other = pa.table({"text": ["a"], "labels": [[1]], "weights": [[1.0]]})
    with pytest.raises(BundleError, match="does not have 1 queries"):
        memory_in(written(other, path), path, 1, 5)
    write_memory(path, TEXTS, LABELS)
    uneven = pa.ipc.open_file(path).read_all()
    lists_of_one = pa.array([[1.0], [1.0], [1.0]], SCHEMA.field("weights").type)
    with pytest.raises(BundleError, match="not one weight per label"):
        memory_in(written(uneven.set_column(2, SCHEMA.field("weights"), lists_of_one), path), path, 3, 5)
    for content in (b"", b"ARROW1\0\0", b"x" * 100):
        with pytest.raises(BundleError, match="is not an Arrow file"):
            memory_in(content, path, 3, 5)
