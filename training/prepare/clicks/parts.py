"""Read the part files of a click log into cells: rows of one part with equal values, added up.

A cell has the clicks, impressions and rows of one (query spelling, label, label text, split, day, position, source of
clicks, attributes). Cells are Parquet files, named by the content of the part and the options that they depend on, so a
cache of them makes a rolling window read only new files. DuckDB aggregates on disk: memory does not grow with the rows.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from retrieval.errors import DatasetError
from retrieval.system.atomic_files import PARTIAL, atomic_file
from retrieval.tables.batches import Part
from retrieval.tables.columns import Attribute, Count, Day, Identifier, Parser, Text
from retrieval.tables.opening import ReadingProgress
from retrieval.tables.table import part_notes
from training.prepare.bad_rows import MAX_MESSAGES, escape_surrogates, escaped_names
from training.prepare.progress_bar import ProgressBar
from training.prepare.sources.columns import Columns
from training.prepare.sources.split_parser import SplitForm, SplitParser

CELLS_VERSION = 1  # increase it when the same part gives other cells
CACHE_DAYS = 90  # a cached part that no run has used for so long is removed
ATTRIBUTE = "attribute_"  # beginning of the names of attributes
DAY_SECONDS = 86_400
ROWS_PER_FILE = 4_000_000  # of the source, which are in memory at once


class PartCells(BaseModel):
    """The cells of one part, and the counts of its rows."""

    files: list[str] = []  # names of the Parquet files in the folder of cells; none for a part without rows
    read: int = 0
    blank: int = 0
    bad: int = 0
    messages: list[str] = []
    notes: dict[str, int | dict[str, int]] = {}  # of the part, such as rows in several lines
    more_clicks_than_impressions: int = 0


class PartReader:
    """Reads parts with the same columns and options."""

    def __init__(self, connection: Any, columns: Columns, max_characters: int, *, keys_are_ids: bool) -> None:
        """`keys_are_ids`: labels are ids, which may be numbers, and not texts."""
        self._connection = connection
        self._columns = columns
        self._parsers = _parsers(columns, max_characters, keys_are_ids)
        self._roles = _roles(columns)

    def key(self, part: Part, layout: str) -> str:
        """Return the name under which the cells of a part are cached: a SHA-256 of all that they depend on."""
        parsers = {name: repr(parser) for name, parser in self._parsers.items()}
        values, roles = dict(part.file.values), sorted(self._roles.items())
        described = [CELLS_VERSION, part.sha256, part.name, layout, values, parsers, roles]
        return hashlib.sha256(json.dumps(described).encode("utf-8", "backslashreplace")).hexdigest()[:32]

    def read(self, part: Part, key: str, folder: Path, progress: ReadingProgress) -> PartCells:
        """Return the cells of a part, from `folder` if it has them. Raises TableError."""
        record = folder / f"{key}.json"
        if (cells := _cached(record, folder)) is not None:
            progress.finish(part.size)
            return cells
        cells = self._aggregate(part, folder / key, progress)
        with atomic_file(record, unique=True) as temporary:
            temporary.write_text(cells.model_dump_json(), encoding="utf-8")
        return cells

    def _aggregate(self, part: Part, prefix: Path, progress: ReadingProgress) -> PartCells:
        cells, split_form = PartCells(), SplitForm()
        with self._connection.cursor() as connection:
            writer = _CellWriter(connection, prefix, self._roles)
            for batch in part.batches(self._parsers, progress):
                rows, bad = batch.rows, list(batch.bad)
                if self._columns.split:
                    differs_N, message = split_form.differing(rows[self._columns.split])
                    places = rows["place"].filter(pa.array(differs_N)).to_pylist()
                    bad += [(part.place_text(place), message) for place in places]
                    rows = rows.filter(pa.array(~differs_N))
                cells.read += batch.read
                cells.blank += batch.blank
                cells.bad += len(bad)
                listed = bad[: MAX_MESSAGES - len(cells.messages)]
                cells.messages += [escape_surrogates(f"{where}: {message}") for where, message in listed]
                writer.add(rows)
            writer.flush()
        notes = part_notes(part) | ({"unused_columns": dict(part.unused)} if part.unused else {})
        cells.notes = escaped_names(notes)
        cells.files, cells.more_clicks_than_impressions = writer.files, writer.more_clicks_than_impressions
        return cells


class _CellWriter:
    """Adds up rows with equal values, up to ROWS_PER_FILE at a time, and writes the cells."""

    def __init__(self, connection: Any, prefix: Path, roles: Mapping[str, tuple[str | None, str]]) -> None:
        """`prefix`: path of the files without the number and the suffix."""
        self._connection, self._prefix, self._roles = connection, prefix, roles
        self._rows: list[Any] = []
        self._n_rows = 0
        self.files: list[str] = []
        self.more_clicks_than_impressions = 0

    def add(self, rows: Any) -> None:
        """Add rows of the source."""
        # DuckDB reads only names that are UTF-8
        columns = {role: rows[name] for role, (name, _) in self._roles.items() if name is not None}
        columns |= {role: _as_text(column) for role, column in columns.items() if role.startswith(ATTRIBUTE)}
        self._rows.append(pa.table({**columns, "place": rows["place"]}))
        self._n_rows += rows.num_rows
        if self._n_rows >= ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write the cells of the rows that were added, if there are any."""
        if not self._n_rows:
            return
        self._connection.register("added", pa.concat_tables(self._rows))
        more = self._connection.sql(f"SELECT count(*) FROM ({self._select()}) WHERE clicks > impressions").fetchall()
        self.more_clicks_than_impressions += int(more[0][0])
        file = self._prefix.with_name(f"{self._prefix.name}-{len(self.files)}.parquet")
        with atomic_file(file, unique=True) as temporary:
            self._connection.execute(
                f"COPY (SELECT * EXCLUDE (clicks, impressions, place), sum(clicks)::BIGINT AS clicks, "
                f"sum(impressions)::BIGINT AS impressions, count(*) AS rows, min(place) AS place "
                f"FROM ({self._select()}) GROUP BY ALL) TO '{quoted(temporary)}' (FORMAT parquet, COMPRESSION zstd)"
            )
        self._connection.unregister("added")
        self._rows, self._n_rows = [], 0
        self.files.append(file.name)

    def _select(self) -> str:
        """Return SQL that selects the values of a row; a count without a column is 1 per row."""
        values = []
        for role, (name, kind) in self._roles.items():
            default = "1" if role in ("clicks", "impressions") else "NULL"
            values.append(f"CAST({role if name else default} AS {kind}) AS {role}")
        return f"SELECT {', '.join(values)}, place FROM added"


def read_parts(
    reader: PartReader, parts: Iterable[Part], folder: Path, layout: str, bar: ProgressBar, threads: int
) -> list[PartCells]:
    """Return the cells of all parts in order, several parts at a time. Raises TableError for the first bad part."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(part: Part) -> PartCells:
        return reader.read(part, reader.key(part, layout), folder, bar.part())

    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(one, part) for part in parts]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def remove_unused(folder: Path, cells: Iterable[PartCells]) -> None:
    """Mark the cells of this run as used now, and remove those that no run has used for CACHE_DAYS."""
    now = time.time()
    for name in (name for one in cells for name in one.files):
        os.utime(folder / name, (now, now))
    limits = {f".*{PARTIAL}": 1, "*.parquet": CACHE_DAYS}  # in days; the first are of runs that were killed
    for pattern, days in limits.items():
        for path in folder.glob(pattern):
            with suppress(FileNotFoundError):  # another run may remove it
                if path.stat().st_mtime < now - days * DAY_SECONDS:
                    path.unlink()
                    path.with_name(f"{path.stem.partition('-')[0]}.json").unlink(missing_ok=True)


def quoted(path: Path) -> str:
    """Return a path for use inside quotes in SQL."""
    return str(path).replace("'", "''")


def _parsers(columns: Columns, limit: int, keys_are_ids: bool) -> dict[str, Parser]:
    parsers: dict[str, Parser] = {
        columns.query: Text(limit=limit),
        columns.label: (Identifier if keys_are_ids else Text)(limit=limit),
    }
    optional: Mapping[str | None, Parser] = {
        columns.label_text: Text(limit=limit),
        columns.split: SplitParser(required=False),
        columns.clicks: Count(),
        columns.impressions: Count(),
        columns.position: Count(required=False),
        columns.date: Day(),
        columns.source: Identifier(required=False, limit=limit),
    }
    parsers |= {name: parser for name, parser in optional.items() if name is not None}
    return parsers | {name: Attribute() for name in columns.attributes}


def _roles(columns: Columns) -> dict[str, tuple[str | None, str]]:
    """Return the source's column and the SQL type of each value of a row, by its name in the cells."""
    roles: dict[str, tuple[str | None, str]] = {
        "query": (columns.query, "VARCHAR"),
        "label": (columns.label, "VARCHAR"),
        "label_text": (columns.label_text, "VARCHAR"),
        "split": (columns.split, "TINYINT"),
        "day": (columns.date, "DATE"),
        "position": (columns.position, "BIGINT"),
        "origin": (columns.source, "VARCHAR"),
        "clicks": (columns.clicks, "BIGINT"),
        "impressions": (columns.impressions, "BIGINT"),
    }
    return roles | {f"{ATTRIBUTE}{n}": (name, "VARCHAR") for n, name in enumerate(columns.attributes)}


def _as_text(column: Any) -> Any:
    """Return an attribute as text: its Arrow type may differ between batches. Raises DatasetError."""
    try:
        return column.cast(pa.large_string())
    except pa.ArrowException as error:
        raise DatasetError(
            f"An attribute of the log has the type {column.type}, not text or numbers. Put it into a label table, and "
            "give the table with --labels."
        ) from error


def _cached(record: Path, folder: Path) -> PartCells | None:
    try:
        cells = PartCells.model_validate_json(record.read_bytes())
    except (OSError, ValidationError):  # not cached, or written by another version
        return None
    return cells if all((folder / name).is_file() for name in cells.files) else None
