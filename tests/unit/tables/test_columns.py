"""Parsers of columns: accepted values, the message of each bad row, and the counts of batches."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import TableError
from retrieval.tables.columns import (
    Attribute,
    Count,
    Day,
    Identifier,
    IdentifierList,
    Number,
    Parser,
    Text,
    TextList,
)
from retrieval.tables.table import Table

DAY = datetime.date(2026, 9, 1)
NOON = datetime.datetime(2026, 9, 1, 12)


def parse(parser: Parser, values: Any) -> tuple[list[Any], dict[int, str]]:
    """Return parsed values and messages."""
    column, messages = parser.parse(values, "c")
    return column.to_pylist(), messages


@pytest.mark.parametrize(
    ("parser", "values", "expected"),
    [
        (Text(), ["a b", " a \t b ", "é\u3000ü"], ["a b", "a b", "é ü"]),
        (Text(required=False), ["a", None], ["a", None]),
        (Text(2), ["ab", "éé"], ["ab", "éé"]),
        (Identifier(), ["007", "7.0"], ["007", "7.0"]),
        (Identifier(), [7, -1], ["7", "-1"]),
        (Identifier(), [7.0, 2.0**53 - 1], ["7", "9007199254740991"]),
        (Count(), ["3", " 4 ", "5.0", "999999999999"], [3, 4, 5, 999999999999]),
        (Count(), [3.0, 0.0], [3, 0]),
        (Count(required=False), ["1", None], [1, None]),
        (Number(), ["1.5", "-2", "1e3", " 7 ", ".5"], [1.5, -2.0, 1000.0, 7.0, 0.5]),
        (Number(), [1, 2], [1.0, 2.0]),
        (Day(), ["2026-09-01", "20260901", "2026-09-01T10:00:00Z", "2026-09-01 10:00", " 2026-09-01 "], [DAY] * 5),
        (Day(), [20260901], [DAY]),
        (Day(), pa.array([DAY, DAY]), [DAY, DAY]),
        (Day(), pa.array([NOON], pa.timestamp("ns")), [DAY]),
        (TextList(), [["a", " b "], []], [["a", "b"], []]),
        (TextList(), ['["a", "b"]'], [["a", "b"]]),
        (TextList(allow_single=True), ['["a"]', "b"], [["a"], ["b"]]),
        (TextList(required=False), pa.array([["a"], None], pa.list_(pa.string())), [["a"], None]),
        (IdentifierList(), [[1, 2], []], [["1", "2"], []]),
        (Attribute(), [1, None], [1, None]),
        (Attribute(), [{"a": [1.5]}], [{"a": [1.5]}]),
    ],
)  # fmt: skip
def test_values_are_parsed_alike_from_arrow_and_from_python(parser: Parser, values: Any, expected: list[Any]) -> None:
    """If this failed, a value would be read differently in another format, or next to an unusual one."""
    assert parse(parser, values) == (expected, {})
    if isinstance(values, list):
        assert parse(parser, pa.array(values)) == (expected, {})


@pytest.mark.parametrize(
    ("parser", "value", "message"),
    [
        (Text(), None, "c is null, not text. Write text or remove the row."),
        (Text(), 7, "c is 7, not text. Write text or remove the row."),
        (Text(), " \u200b", 'c is " \u200b", which is empty. Write text or remove the row.'),
        (Text(2), "abc", 'c has 3 characters ("abc"), more than 2. Shorten it, or raise --max-characters.'),
        (Identifier(), 1.5, "c is 1.5, which is not an exact integer. Write ids as integers or text."),
        (Identifier(), 1e16, "c is 1e+16, which is not an exact integer. Write ids as integers or text."),
        (Identifier(), True, "c is true, not text. Write text or remove the row."),
        (Count(), "-1", 'c is "-1", not a count. Write an integer of at least 0.'),
        (Count(), -1, "c is -1, not a count. Write an integer of at least 0."),
        (Count(), 2**40, "c is 1099511627776, not a count. Write an integer of at least 0."),
        (Count(), None, "c is null, not a count. Write an integer of at least 0."),
        (Count(), "0x1", 'c is "0x1", not a count. Write an integer of at least 0.'),
        (Number(), "nan", 'c is "nan", not a number. Write a finite number.'),
        (Number(), True, "c is true, not a number. Write a finite number."),
        (Day(), "2026-02-30", 'c is "2026-02-30", not a date. Write it as 2026-09-01.'),
        (Day(), "01.09.2026", 'c is "01.09.2026", not a date. Write it as 2026-09-01.'),
        (Day(), 1.5, "c is 1.5, not a date. Write it as 2026-09-01."),
        (TextList(), "a", 'c is "a", not a list of labels. Write a list or remove the row.'),
        (TextList(), None, "c is null, not a list of labels. Write a list or remove the row."),
        (TextList(), ["a", None], "c[1] is null, not text. Write text or remove the row."),
        (TextList(allow_single=True), None, "c is null, not text. Write text or remove the row."),
        (IdentifierList(), [1.5], "c[0] is 1.5, which is not an exact integer. Write ids as integers or text."),
    ],
)  # fmt: skip
def test_a_bad_value_has_a_message_and_does_not_change_the_others(parser: Parser, value: Any, message: str) -> None:
    """If this failed, one bad value would take good rows with it, or its message would name the wrong row."""
    good = {Count: 1, Number: 1.0, Day: "2026-09-01", TextList: ["x"], IdentifierList: ["x"]}.get(type(parser), "x")
    _, messages = parse(parser, [good, value, good])
    assert messages == {1: message}
    assert parse(parser, pa.array([value]))[1] == {0: message}


def test_days_are_those_of_the_time_zone_within_the_calendar() -> None:
    """If this failed, clicks before midnight would be in the next day, or a wrong date would end in a traceback."""
    late = datetime.datetime(2026, 9, 1, 23, tzinfo=datetime.UTC)
    assert parse(Day(), pa.array([late], pa.timestamp("us", "Asia/Tokyo"))) == ([datetime.date(2026, 9, 2)], {})
    column, messages = parse(Day(), pa.array([20_697, 4_000_000], pa.int32()).cast(pa.date32()))
    assert column == [DAY, None]
    assert messages == {1: 'c is "12921-08-18", not a date. Write it as 2026-09-01.'}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a\udce9", "c contains the byte 0xe9, which is not UTF-8. It may be Latin-1"),
        ([2**64], "c is 18446744073709551616, which does not fit in 64 bits. Write it as text."),
    ],
)
def test_an_attribute_that_cannot_be_stored_is_a_bad_row(value: Any, message: str) -> None:
    """If this failed, writing the label table would end in a traceback."""
    assert parse(Attribute(), ["x", value])[1][1].startswith(message)


def test_attributes_of_64_bits_without_a_sign_are_read() -> None:
    """If this failed, hashes as attributes would be refused."""
    assert parse(Attribute(), [2**64 - 1, 1]) == ([2**64 - 1, 1], {})


def test_attributes_of_several_types_are_refused() -> None:
    """If this failed, the label table would end in a traceback of Arrow."""
    with pytest.raises(TableError, match=r"column 'c' contains values of different types .*\. Use one type\."):
        parse(Attribute(), ["x", 1])
    with pytest.raises(TableError, match=r"column 'c' contains integers that do not fit in one type"):
        parse(Attribute(), [2**64 - 1, -1])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_bad_rows_are_named_by_file_and_place_in_order(tmp_path: Path, name: str) -> None:
    """If this failed, a user could not find the row that a message is about."""
    rows = [("a", "1"), ("", "1"), ("b", "x"), ("c", "2")]
    path = tmp_path / name
    if name == "t.jsonl":
        path.write_text("".join(json.dumps({"query": query, "n": count}) + "\n" for query, count in rows))
    elif name == "t.parquet":
        pq.write_table(pa.table({"query": [row[0] for row in rows], "n": [row[1] for row in rows]}), path)
    else:
        separator = "\t" if name == "t.tsv" else ","
        path.write_text("".join(separator.join(row) + "\n" for row in [("query", "n"), *rows]))
    first = {"t.jsonl": "line 2", "t.parquet": "row 1"}.get(name, "line 3")
    second = {"t.jsonl": "line 3", "t.parquet": "row 2"}.get(name, "line 4")
    (batch,) = Table(path).batches({"query": Text(), "n": Count()})
    is_null = name in ("t.csv", "t.tsv")
    empty = "null, not text" if is_null else '"", which is empty'
    assert batch.bad == [
        (f"{name} {first}", f"query is {empty}. Write text or remove the row."),
        (f"{name} {second}", 'n is "x", not a count. Write an integer of at least 0.'),
    ]
    assert batch.rows.column_names == ["query", "n", "place"]
    assert batch.rows.select(["query", "n"]).to_pylist() == [{"query": "a", "n": 1}, {"query": "c", "n": 2}]
    assert (batch.read, batch.blank) == (4, 0)


def test_a_row_with_several_bad_cells_has_the_message_of_the_first_column(tmp_path: Path) -> None:
    """If this failed, one row would be counted as several bad rows."""
    (tmp_path / "t.csv").write_text("n,query\nx,\n")
    (batch,) = Table(tmp_path / "t.csv").batches({"query": Text(), "n": Count()})
    assert [message for _, message in batch.bad] == ["query is null, not text. Write text or remove the row."]
    assert batch.read == 1


def test_the_columns_that_are_not_read_may_have_any_content(tmp_path: Path) -> None:
    """If this failed, a column that no command uses would make a file unreadable."""
    (tmp_path / "t.jsonl").write_text('{"query": "a", "n": 1}\n{"query": "b", "n": "x", "m": [2]}\n{"query": "c"}\n')
    table = Table(tmp_path / "t.jsonl")
    assert [row["query"] for batch in table.batches({"query": Text()}) for row in batch.rows.to_pylist()] == list("abc")
    assert table.parts[0].unused == {"n": 2, "m": 1}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"query": ["a"], "t": pa.array([1], pa.time64("ns"))}), path)
    assert [batch.read for batch in Table(path).batches({"query": Text()})] == [1]
    with pytest.raises(TableError, match=r"column 't' has the type time64\[ns\], not text or numbers\. Name another"):
        list(Table(path).batches({"t": Text()}))
