"""Random tables are written in every format and compression, and the same values are read back."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retrieval.tables.lines
import retrieval.tables.opening
from retrieval.tables.columns import Attribute, Count, Parser, Text
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow, parse_count, parse_text

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}
LIMIT = 12
# Characters that mean something in a format, white space, and texts that look like other types.
PIECES = st.sampled_from(
    ['"', '""', ",", "\t", ";", "a", "b c", " ", "\u3000", "é", "鞋", "\u200b", "{", "]", "7", "\\"]
)
CELLS = st.lists(PIECES, max_size=5).map("".join)
ONE_LINE = st.lists(st.tuples(CELLS, CELLS, st.sampled_from(["0", "7", "2.0", "-1", "x", ""])), max_size=12)
ANY_LINES = st.lists(
    st.tuples(
        st.lists(st.one_of(PIECES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=5).map("".join), CELLS,
        st.sampled_from(["0", "7", "2.0", "-1", "x", ""]),
    ),
    max_size=12,
)  # fmt: skip
Rows = list[tuple[str, str, str]]
COLUMNS = ("query", "note", "clicks")


def as_csv(rows: Rows, separator: str, end: str, quoting: Any) -> bytes:
    """Write rows as CSV."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([COLUMNS, *rows])
    return target.getvalue().encode()


def as_json(rows: Rows) -> bytes:
    """Write rows as JSON Lines."""
    return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows).encode()


def expected(rows: Rows, *, empty_is_null: bool) -> tuple[list[dict[str, Any]], int]:
    """Return the accepted rows by the functions for single values, and the number of bad rows."""
    accepted, bad = [], 0
    for query, note, clicks in rows:
        try:
            text = parse_text(query or None if empty_is_null else query, "query", LIMIT)
            accepted.append(
                {
                    "query": text,
                    "note": note or None if empty_is_null else note,
                    "clicks": parse_count(clicks, "clicks"),
                }
            )
        except BadRow:
            bad += 1
    return accepted, bad


def check(name: str, content: bytes, rows: Rows, *, empty_is_null: bool) -> None:
    """Read a file and compare its rows and counts with those that were written."""
    parsers: dict[str, Parser] = {"query": Text(LIMIT), "note": Attribute(), "clicks": Count()}
    accepted, bad = expected(rows, empty_is_null=empty_is_null)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        batches = list(Table(path).batches(parsers))
    read = [row for batch in batches for row in batch.rows.to_pylist()]
    places = [row.pop("place") for row in read]
    assert read == accepted
    assert places == sorted(set(places))
    blank = sum(batch.blank for batch in batches)
    assert sum(len(batch.bad) for batch in batches) == bad - blank  # rows without any value are blank
    assert sum(batch.read for batch in batches) == len(rows)
    assert all(
        batch.read == batch.rows.num_rows + len(batch.bad) + batch.blank and message.endswith(".") and place
        for batch in batches
        for place, message in batch.bad
    )


@pytest.fixture(autouse=True, params=[2**23, 16], ids=["one block", "many blocks"])
def _block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval.tables.lines, "BLOCK", request.param)
    monkeypatch.setattr(retrieval.tables.opening, "FIRST_BYTES", min(request.param, 4_096))


@settings(max_examples=150, deadline=None)
@given(
    ANY_LINES, st.sampled_from(list(COMPRESSIONS)), st.sampled_from([",", "\t", ";"]),
    st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)]),
)  # fmt: skip
def test_csv_is_read_as_it_was_written(rows: Rows, compression: str, separator: str, style: tuple[str, Any]) -> None:
    """If this failed, a cell with a quote, a separator or a line end would be changed, lost or moved."""
    rows = [row for row in rows if not looks_like_rows(row, separator)]
    content = as_csv(rows, separator, *style)
    check(f"t.csv{compression}", COMPRESSIONS[compression](content), rows, empty_is_null=True)


def looks_like_rows(row: tuple[str, str, str], separator: str) -> bool:
    """Return whether a cell has lines with two separators each, which `--quoting auto` takes for rows."""
    return any(mark in row[0] for mark in "\r\n") and separator in row[0]


@settings(max_examples=100, deadline=None)
@given(ONE_LINE, st.sampled_from(list(COMPRESSIONS)))
def test_tsv_without_quoting_is_read_as_it_was_written(rows: Rows, compression: str) -> None:
    """If this failed, a quote in TSV would join cells or lines."""
    rows = [(query.replace("\t", ""), note.replace("\t", ""), clicks) for query, note, clicks in rows]
    content = "".join("\t".join(row) + "\n" for row in [COLUMNS, *rows]).encode()
    check(f"t.tsv{compression}", COMPRESSIONS[compression](content), rows, empty_is_null=True)


@settings(max_examples=100, deadline=None)
@given(ANY_LINES, st.sampled_from(list(COMPRESSIONS)))
def test_json_lines_are_read_as_they_were_written(rows: Rows, compression: str) -> None:
    """If this failed, the columnar reader of JSON would change a text or lose a row."""
    check(f"t.jsonl{compression}", COMPRESSIONS[compression](as_json(rows)), rows, empty_is_null=False)


@settings(max_examples=100, deadline=None)
@given(
    ANY_LINES,
    st.sampled_from(
        [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
    ),
    st.integers(1, 5),
)  # fmt: skip
def test_parquet_is_read_as_it_was_written(rows: Rows, kind: Any, group: int) -> None:
    """If this failed, one of the types of text in Parquet would be read differently."""
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in range(3)]
    queries = columns[0].dictionary_encode() if pa.types.is_dictionary(kind) else columns[0].cast(kind)
    target = io.BytesIO()
    pq.write_table(pa.table([queries, *columns[1:]], names=list(COLUMNS)), target, row_group_size=group)
    check("t.parquet", target.getvalue(), rows, empty_is_null=False)


OBJECTS = st.sampled_from(
    [
        '{"query": "a", "clicks": 1}', '{"query": "é", "clicks": 2, "more": [1]}', '{"query": 7, "clicks": 1}', "{}",
        '{"query": null, "clicks": 1}', '{"query": "a", "query": "b", "clicks": 1}', '{"query":', '"a", "clicks": 1}',
        '{"query": "a", "clicks": 1}{"query": "b", "clicks": 1}', "7", "", "  ", '{"query": "\\ud800", "clicks": 1}',
        ' {"query": "x", "clicks": 3.0} ', '{"query": "a", "clicks": NaN}', '{"qu\\u0065ry": "k", "clicks": "2"}',
        '{"query": "a", "clicks": 1, "more": 99999999999999999999999999}', '{"query": "a", "clicks": 1, "more": "x"}',
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(OBJECTS, st.just('{"query": "a", "clicks": 1}')), max_size=8))
def test_blocks_of_json_are_read_like_single_lines(lines: list[str]) -> None:
    """If this failed, one unusual line would change how the lines beside it are read, or their messages."""
    parsers: dict[str, Parser] = {"query": Text(LIMIT), "clicks": Count()}

    def read(content: str) -> tuple[list[Any], list[Any], int]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "t.jsonl"
            path.write_text(content)
            batches = list(Table(path).batches(parsers))
        rows = [row for batch in batches for row in batch.rows.to_pylist()]
        return rows, [bad for batch in batches for bad in batch.bad], sum(batch.blank for batch in batches)

    rows, bad, blank = read("".join(line + "\n" for line in lines))
    single = [read("\n" * place + line + "\n") for place, line in enumerate(lines)]
    assert rows == [row for one, _, _ in single for row in one]
    assert bad == [message for _, one, _ in single for message in one]
    assert blank == sum(count - place for place, (_, _, count) in enumerate(single))
