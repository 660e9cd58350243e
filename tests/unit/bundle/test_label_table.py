"""The label table: lookup of rows, and invalid files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval.bundle.labels import LabelTable, write_labels
from retrieval.errors import BundleError


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    """If it fails, hits have the texts of other labels."""
    table = pa.table(
        {"id": ["a", "b", "c"], "text": ["A", "B", "C"], "tags": [["x"], None, []], "price": [1.5, None, 2.0]}
    )
    write_labels(tmp_path / "labels.arrow", table)
    labels = LabelTable.open(tmp_path / "labels.arrow")
    assert len(labels) == 3
    assert labels.take(np.array([2, 0, 2])) == [table.to_pylist()[row] for row in (2, 0, 2)]
    assert labels.ids(np.array([1, 0])) == ["b", "a"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_texts_of_any_alphabet_and_length_come_back_whole(tmp_path: Path, kind: pa.DataType) -> None:
    """If it fails, a text is cut within a character, or includes the beginning of the next label."""
    texts = ["Zürich", "", "靴", "a" * 1000, "🥾 shoes"]
    table = pa.table({"id": pa.array(["b", "a", "", "d", "e"], kind), "text": pa.array(texts, kind)})
    write_labels(tmp_path / "labels.arrow", table)
    labels = LabelTable.open(tmp_path / "labels.arrow")
    assert labels.take(np.arange(5)) == table.to_pylist()
    assert list(labels.records([4, 1])) == [("e", "🥾 shoes", {}), ("a", "", {})]
    assert LabelTable(labels.table.slice(1, 3)).take(np.array([2, 0])) == table.slice(1, 3).take([2, 0]).to_pylist()


def test_no_rows_give_no_labels(tmp_path: Path) -> None:
    """If it fails, a search that finds nothing ends in a traceback where labels have attributes."""
    table = pa.table({"id": ["a"], "text": ["A"], "year": [2020], "tags": [["x"]]})
    assert LabelTable(table).take(np.array([], np.int64)) == []


def test_a_table_of_many_chunks_is_read_alike(tmp_path: Path) -> None:
    """If it fails, label tables with several record batches return the wrong rows."""
    pieces = [pa.table({"id": [f"{n}"], "text": [f"text {n}"]}) for n in range(20)]
    write_labels(tmp_path / "labels.arrow", pa.concat_tables(pieces))
    assert LabelTable.open(tmp_path / "labels.arrow").ids(np.array([19, 7])) == ["19", "7"]


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"id": ["a"]}),
        pa.table({"id": [1], "text": ["A"]}),
        pa.table({"id": ["a", None], "text": ["A", "B"]}),
        pa.table({"id": ["a"], "text": pa.array([None], pa.string())}),
    ],
    ids=["no text", "number as id", "id with a gap", "text with a gap"],
)
def test_a_table_without_ids_or_texts_is_refused(tmp_path: Path, table: pa.Table) -> None:
    """If it fails, a hit without id or text reaches a client."""
    write_labels(tmp_path / "labels.arrow", table)
    with pytest.raises(BundleError, match="must be text without missing values"):
        LabelTable.open(tmp_path / "labels.arrow")


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"\0" * 1000])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """If it fails, a damaged table ends in a traceback."""
    (tmp_path / "labels.arrow").write_bytes(content)
    with pytest.raises(BundleError, match="not an Arrow file"):
        LabelTable.open(tmp_path / "labels.arrow")
