"""Properties of every file, with random bytes: each line belongs to one row; only TableError stops reading."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import TableError
from retrieval.tables.arrow_types import python_values
from retrieval.tables.batches import Part
from retrieval.tables.columns import Identifier
from retrieval.tables.delimited import Layout
from retrieval.tables.json_lines import JsonPart
from retrieval.tables.opening import NoReadingProgress
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow

# Characters that mean something in CSV, and a few that do not.
PIECES = st.sampled_from(['"', '""', ",", "\n", "\r\n", ";", "\t", "a", "b c", ' "', '"a,b"', "é", "\x00", "[", "]"])
CONTENT = st.lists(PIECES, max_size=60).map("".join)
LAYOUTS = st.sampled_from([Layout(), Layout(","), Layout(quoting="csv"), Layout(quoting="none")])


def rows(name: str, content: bytes, layout: Layout | None = None) -> list[tuple[str, object]]:
    """Return all rows of a file with these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        table = Table(path, layout)
        columns = [one for one in table.names if one and table.names.count(one) == 1][:2]
        return [row for part in table.parts for row in rows_of(part, columns)]


def rows_of(part: Part, columns: list[str]) -> Iterator[tuple[str, object]]:
    """Yield the place of each row of a file, and its values, BadRow for a bad row, None for a blank row."""
    if isinstance(part, JsonPart):
        yield from ((part.place_text(place), record) for place, record in part.records(columns, NoReadingProgress()))
        return
    for chunks in part.chunks([name for name in columns if name in part.stored_names], NoReadingProgress()):
        contents: dict[int, tuple[int | None, object]] = {}
        for chunk in chunks:
            values = zip(*(python_values(part.values(chunk, name, Identifier())) for name in columns), strict=True)
            accepted = dict(zip(chunk.places_N.tolist(), values, strict=False))
            bad = {place: BadRow(message) for place, message in chunk.bad.items()}
            rows = accepted | bad | dict.fromkeys(chunk.blank)
            contents |= {place: (chunk.last_lines.get(place), row) for place, row in rows.items()}
        yield from ((part.place_text(place, last), row) for place, (last, row) in sorted(contents.items()))


@settings(max_examples=300)
@given(CONTENT, LAYOUTS, st.sampled_from(["t.csv", "t.tsv"]))
def test_every_line_belongs_to_exactly_one_row(content: str, layout: Layout, name: str) -> None:
    """If this failed, some order of quotes would lose lines, or read lines twice."""
    content = "query,label\n" + content
    try:
        found = rows(name, content.encode(), layout)
    except TableError:
        return
    covered: list[int] = []
    for where, record in found:
        first, _, last = where.removeprefix(f"{name} ").removeprefix("lines ").removeprefix("line ").partition("–")
        covered += range(int(first), int(last or first) + 1)
        assert record is None or isinstance(record, dict | tuple | BadRow)
    lines = len(re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+$", content))
    assert covered == list(range(2, lines + 1))


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.csv.gz", "t.parquet"]))
def test_no_bytes_end_in_another_error(content: bytes, name: str) -> None:
    """If this failed, a damaged file would end in a traceback."""
    with contextlib.suppress(TableError):
        assert all(isinstance(record, dict | tuple | BadRow) or record is None for _, record in rows(name, content))


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(['{"query": "a"}', "{", "[]", "[", "7", '"x"', "", "  ", "{}", '{"query": 1e999}']), max_size=8
    )
)
def test_every_line_of_json_is_one_row(lines: list[str]) -> None:
    """If this failed, lines of JSON would be lost without a count."""
    filled = [line for line in lines if line.strip()]
    content = "".join(line + "\n" for line in lines).encode()
    if filled and filled[0] == "[":
        with pytest.raises(TableError, match="JSON array"):
            rows("t.jsonl", content)
    elif filled != ["[]"]:
        assert len(rows("t.jsonl", content)) == len(lines)
