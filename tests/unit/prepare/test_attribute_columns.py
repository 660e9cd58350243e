"""Attribute columns of a label table: which types are converted, and which are refused with one sentence."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError, TableError
from retrieval.tables.arrow_types import attribute_array
from retrieval.tables.columns import Attribute
from retrieval.tables.table import Table
from training.prepare.sources.attributes import MAX_DEPTH, attribute_column

TABLE = Path("labels.parquet")


def nested(depth: int) -> Any:
    """Return a number nested in `depth` lists."""
    return [nested(depth - 1)] if depth else 1


def column(values: Any) -> Any:
    """Return an Arrow array, or Python values, as the column of a table."""
    return pa.chunked_array([values if isinstance(values, pa.Array) else attribute_array(values, "x")])


@pytest.mark.parametrize(
    ("values", "answered"),
    [
        (column([{"a": math.inf}, None]), [{"a": None}, None]),
        (column([[[math.nan]], None]), [[[None]], None]),
        (
            column(pa.array([[("a", math.nan)], None], pa.map_(pa.string(), pa.float64()))),
            [[{"key": "a", "value": None}], None],
        ),
        (column(pa.array([[("a", 0)]], pa.map_(pa.string(), pa.date32()))), [[{"key": "a", "value": "1970-01-01"}]]),
        (column(pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"]))), ["{}"]),
    ],
    ids=["infinity in an object", "NaN in lists", "NaN in a map", "dates in a map", "text of an extension type"],
)
def test_values_that_json_lacks_are_replaced_wherever_they_are(values: Any, answered: list[Any]) -> None:
    """If it fails, one label makes an answer invalid JSON, or ends the engine that writes it."""
    assert attribute_column(TABLE, "x", values).to_pylist() == answered


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (column([{}, None]), "only empty objects"),
        (column([{"a": [{}]}]), "only empty objects"),
        (column([nested(MAX_DEPTH + 1)]), "nested more than 32 deep"),
        (column(pa.array([b"0" * 16], pa.uuid())), "contains bytes"),
        (column(pa.array([[1.5]], pa.list_view(pa.float64()))), "list views"),
    ],
    ids=["empty object", "empty object inside", "depth", "uuid", "list view"],
)
def test_values_that_no_file_can_store_are_one_sentence(values: Any, why: str) -> None:
    """If it fails, one attribute stops `prepare` with a traceback, or after it wrote a dataset that cannot be read."""
    with pytest.raises(DatasetError, match=rf"^labels.parquet: column 'x' .*{why}"):
        attribute_column(TABLE, "x", values)


def test_a_name_that_is_not_utf_8_is_refused() -> None:
    """If it fails, a header with an invalid byte stops `prepare` with a traceback."""
    with pytest.raises(DatasetError, match="name that is not UTF-8"):
        attribute_column(TABLE, "\udcff", column([1]))


def test_the_deepest_nesting_that_is_accepted_can_be_written_and_read(tmp_path: Path) -> None:
    """If it fails, `prepare` writes a label table that cannot be opened."""
    table = pa.table({"x": attribute_column(TABLE, "x", column([nested(MAX_DEPTH)]))})
    pq.write_table(table, tmp_path / "labels.parquet")
    assert pq.read_table(tmp_path / "labels.parquet").equals(table)
    with pa.OSFile(str(tmp_path / "labels.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "labels.arrow")) as file:
        assert pa.ipc.open_file(file).read_all().equals(table)


def test_a_key_that_is_not_utf_8_is_named_with_its_file(tmp_path: Path) -> None:
    """If it fails, the message does not say which of several tables has the key."""
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "a", "text": "a", "x": {"\\ud800": 1}}\n')
    with pytest.raises(TableError, match=r"labels\.jsonl: column 'x' contains an object with a key that is not UTF-8"):
        list(Table(path).batches({"x": Attribute()}))
