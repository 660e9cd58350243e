"""CSV, TSV, Parquet and JSON Lines as one stream of records: where each stands, and its columns by name."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import DatasetError
from training.data.files import LINES_BETWEEN_TICKS, Meter, kind, lines, opened, require_file
from training.data.rows import BadRow, not_utf8, shown

Record = dict[str, Any]
Located = tuple[str, Record | BadRow]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PARQUET_ROWS_AT_ONCE = 16_384


def records(path: Path, meter: Meter) -> tuple[list[str], Iterator[Located]]:
    """The columns' names and each record with its place; a record that cannot be parsed comes as the BadRow to note.

    Empty cells of a CSV or TSV come as None, its other cells as text. JSON Lines have the columns of the first
    record. Raises DatasetError for a file that is missing, empty, of another kind, or has no header.
    """
    require_kind(path)
    form = kind(path)
    if form in DELIMITERS:
        return _delimited(path, meter)
    if form == ".parquet":
        return _parquet(path, meter)
    return _json_lines(path, meter)


def require_kind(path: Path) -> None:
    """DatasetError when the file's name does not tell a format that can be read."""
    if kind(path) not in KINDS:
        raise DatasetError(f"{path} is none of {', '.join(KINDS)} (.gz and .xz too). Convert it to one of them.")


def json_record(line: bytes) -> Record:
    """One line of JSON Lines; BadRow when it is not UTF-8, not JSON, or no object."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise not_utf8(error.object[error.start], "the line") from error
    except json.JSONDecodeError as error:
        raise BadRow(
            f"{shown(line.decode())} is not JSON ({error.msg}, column {error.colno}). Write one JSON object a line."
        ) from error
    except RecursionError as error:
        raise BadRow("the JSON is nested too deeply. Write one flat JSON object a line.") from error
    if not isinstance(value, dict):
        raise BadRow(f'{shown(value)} is no JSON object. Write one object a line, such as {{"query": …}}.')
    return value


def _json_lines(path: Path, meter: Meter) -> tuple[list[str], Iterator[Located]]:
    def read() -> Iterator[Located]:
        for number, line in lines(path, meter):
            try:
                yield f"{path.name} line {number}", json_record(line)
            except BadRow as bad:
                yield f"{path.name} line {number}", bad

    rows = read()
    first = next(rows, None)
    if first is None:
        raise DatasetError(f"{path} holds only blank lines. Give a file with rows.")
    columns = [] if isinstance(first[1], BadRow) else list(first[1])
    return columns, chain([first], rows)


def _delimited(path: Path, meter: Meter) -> tuple[list[str], Iterator[Located]]:
    rows = _cells(path, meter)
    _, header = next(rows, ("", []))
    if isinstance(header, BadRow):
        raise DatasetError(f"{path} line 1: {header}")
    columns = [name.strip() for name in header]
    if not any(columns):
        raise DatasetError(f"{path} has no header line. Name the columns in the first line.")
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise DatasetError(f"{path} names column {min(repeated)!r} twice in its header. Rename one.")
    return columns, _named(columns, rows)


def _named(columns: list[str], rows: Iterator[tuple[str, list[str] | BadRow]]) -> Iterator[Located]:
    for where, cells in rows:
        if isinstance(cells, BadRow):
            yield where, cells
        elif len(cells) != len(columns):
            found, wanted = len(cells), len(columns)
            yield (
                where,
                BadRow(f"the row has {found} fields ({shown(cells)}), the header {wanted}. Mend the row."),
            )
        else:
            yield where, {name: cell or None for name, cell in zip(columns, cells, strict=True)}


def _cells(path: Path, meter: Meter) -> Iterator[tuple[str, list[str] | BadRow]]:
    with opened(path) as (content, raw):
        # surrogateescape carries a bad byte into the one cell that holds it, so that only its row is bad
        text = io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=DELIMITERS[kind(path)], strict=True)
        while True:
            start = reader.line_num + 1
            try:
                cells: list[str] | BadRow = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                cells = BadRow(f"the quotes do not match ({error}). Double each quote inside a quoted field.")
            end = reader.line_num
            if end % LINES_BETWEEN_TICKS == 0:
                meter.at(path.name, raw.tell())
            if cells:
                yield f"{path.name} " + (f"line {end}" if start >= end else f"lines {start}–{end}"), cells
    meter.finish(path.stat().st_size)


def _parquet(path: Path, meter: Meter) -> tuple[list[str], Iterator[Located]]:
    require_file(path)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet ({error}). Write it again.") from error
    columns = list(file.schema_arrow.names)
    if file.metadata.num_rows == 0:
        raise DatasetError(f"{path} has no rows. Give a file with rows.")
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise DatasetError(f"{path} has two columns {min(repeated)!r}. Rename one.")
    return columns, _parquet_rows(path, file, meter)


def _parquet_rows(path: Path, file: Any, meter: Meter) -> Iterator[Located]:
    size, done = path.stat().st_size, 0
    try:
        for batch in file.iter_batches(PARQUET_ROWS_AT_ONCE):
            for row, record in enumerate(batch.to_pylist()):
                yield f"{path.name} row {done + row}", record
            done += batch.num_rows
            meter.at(path.name, size * done // file.metadata.num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read after row {done} ({error}). Write it again.") from error
    meter.finish(size)
