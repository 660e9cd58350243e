"""Columns with more than 2 GB of text. They repeat one buffer, so they need little memory."""

import numpy as np
import pyarrow as pa
import pytest

from retrieval.bundle.labels import LabelTable, write_labels
from training.data import Ragged, Split, checks
from training.data.split import take_rows
from training.prepare.reciprocal import label_of_text
from training.prepare.source_data import text_column

TEXT = "x" * 2**20
CHUNK = pa.array([TEXT] * 64, pa.large_string())
CHUNKS = 40
ROWS = CHUNKS * len(CHUNK)


def large(kind: pa.DataType) -> pa.ChunkedArray:
    """Return 2.5 GB of text in 2,560 rows, in 64 MB of memory."""
    return pa.chunked_array([CHUNK.cast(kind)] * CHUNKS)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_rows_of_a_split_of_more_than_2_gb_are_read(kind: pa.DataType) -> None:
    """If this failed, a log with more than 2 GB of queries would end in an overflow at prepare or train."""
    table = pa.table(
        {
            "id": [str(row) for row in range(ROWS)],
            "text": large(kind),
            "labels": pa.array([[0]] * ROWS, pa.list_(pa.int32())),
            "exclude": pa.array([[]] * ROWS, pa.list_(pa.int32())),
        }
    )
    assert table["text"].nbytes > 2**31
    split = Split.from_table(checks.check_split_table(table, "train.parquet", 1))
    peak = pa.default_memory_pool().max_memory()
    taken = split.take(np.array([ROWS - 1, 0]))
    assert pa.default_memory_pool().max_memory() - peak < 2**30  # the rows were copied, not the column
    assert [len(text) for text in taken.texts] == [2**20, 2**20]
    assert taken.ids == [str(ROWS - 1), "0"]
    assert split.followed_by(taken).table().num_rows == ROWS + 2


def test_rows_of_chunks_are_returned_in_the_requested_order() -> None:
    """If this failed, queries would get each other's labels."""
    column = pa.chunked_array([["a", "b"], [], ["c"], ["d", "e"]], pa.large_string())
    for rows in ([4, 0, 2, 2], [0, 1, 2], [], [3]):
        assert take_rows(column, np.array(rows, np.int64)).to_pylist() == ["abcde"[row] for row in rows]


def test_ids_of_more_than_2_gb_are_compared() -> None:
    """If this failed, the check for repeated ids would overflow."""
    table = pa.table({"id": large(pa.string()), "text": large(pa.string())})
    with pytest.raises(checks.DatasetError, match="is the id of row 0 too"):
        checks.check_label_table(table, "labels.parquet")


def test_texts_of_more_than_2_gb_are_matched_with_labels() -> None:
    """If this failed, looking for queries that are labels would overflow."""
    assert set(label_of_text(large(pa.string()), text_column([TEXT]))) == {0}


def test_lists_of_more_values_than_32_bits_count_come_in_chunks() -> None:
    """If this failed, more than two billion positives would be written with wrapped offsets."""
    lists = [[1, 2], [3], [], [4, 5, 6, 7], [8], []]
    column = Ragged.from_lists(lists).to_arrow(max_values=3)
    assert column.to_pylist() == lists
    assert column.num_chunks == 3
    assert Ragged.from_lists([]).to_arrow().to_pylist() == []


def test_a_label_table_is_written_with_the_offsets_it_needs(
    tmp_path: "pytest.TempPathFactory", monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a bundle's label table of more than 2 GB could not be written, or small ones would grow."""
    table = pa.table(
        {"id": pa.chunked_array([["a"], ["b"]]), "text": pa.chunked_array([["x"], ["y"]], pa.large_string())}
    )
    for most, kind in ((2**31, pa.string()), (1, pa.large_string())):
        monkeypatch.setattr("retrieval.bundle.labels.LARGEST_32_BIT_COLUMN", most)
        path = tmp_path / f"{most}.arrow"
        write_labels(path, table)
        opened = LabelTable.open(path)
        assert {field.type for field in opened.table.schema} == {kind}
        assert opened.take(np.array([1, 0])) == [{"id": "b", "text": "y"}, {"id": "a", "text": "x"}]
