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
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from retrieval.system.atomic_files import atomic_file, write_text
from retrieval.tables.columns import Attribute, Count, Day, Identifier, Parser, Text
from retrieval.tables.table import part_notes
from training.prepare.bad_rows import MAX_MESSAGES, escape_surrogates, escaped_names
from training.prepare.columns import Columns
from training.prepare.progress_bar import ProgressBar
from training.prepare.split_parser import SplitForm, SplitParser

CELLS_VERSION = 1  # increase it when the same part gives other cells
CACHE_DAYS = 90  # a cached part that no run has used for so long is removed
DAY_SECONDS = 86_400
BYTES_PER_READ = 2**20
MEASURES = ("clicks", "impressions", "rows", "place")


class PartCells(BaseModel):
    """The cells of one part, and the counts of its rows."""

    file: str = ""  # name of the Parquet file in the folder of cells
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

    def key(self, part: Any, layout: str) -> str:
        """Return the name under which the cells of a part are cached: a SHA-256 of all that they depend on."""
        content = sha256(part.open_bytes())
        parsers = {name: repr(parser) for name, parser in self._parsers.items()}
        values, roles = dict(part.file.values), sorted(self._roles.items())
        described = [CELLS_VERSION, content, part.name, layout, values, parsers, roles]
        return hashlib.sha256(json.dumps(described).encode("utf-8", "backslashreplace")).hexdigest()[:32]

    def read(self, part: Any, key: str, folder: Path, progress: Any) -> PartCells:
        """Return the cells of a part, from `folder` if it has them. Raises TableError."""
        record, file = folder / f"{key}.json", folder / f"{key}.parquet"
        if (cells := _cached(record, file)) is not None:
            progress.finish(part.size)
            return cells
        cells = self._aggregate(part, file, progress)
        write_text(record, cells.model_dump_json())
        return cells

    def _aggregate(self, part: Any, file: Path, progress: Any) -> PartCells:
        cells, split_form = PartCells(file=file.name), SplitForm()
        connection = self._connection.cursor()
        name = f"rows_{file.stem}"
        try:
            for number, batch in enumerate(part.batches(self._parsers, progress)):
                rows = batch.rows
                cells.read += batch.read
                cells.blank += batch.blank
                bad = list(batch.bad)
                if self._columns.split:
                    differs_N, message = split_form.differing(rows[self._columns.split])
                    places = rows["place"].filter(pa.array(differs_N)).to_pylist()
                    bad += [(part.place_text(place), message) for place in places]
                    rows = rows.filter(pa.array(~differs_N))
                cells.bad += len(bad)
                listed = bad[: MAX_MESSAGES - len(cells.messages)]
                cells.messages += [escape_surrogates(f"{where}: {message}") for where, message in listed]
                connection.register("batch", self._renamed(rows))
                verb = f"CREATE TABLE {name} AS" if number == 0 else f"INSERT INTO {name}"
                connection.execute(f"{verb} {self._select()}")
                connection.unregister("batch")
            cells.notes = escaped_names(part_notes(part))
            if not cells.read:
                return cells.model_copy(update={"file": ""})
            more = connection.execute(f"SELECT count(*) FROM {name} WHERE clicks > impressions").fetchall()
            cells.more_clicks_than_impressions = int(more[0][0])
            with atomic_file(file) as temporary:
                connection.execute(
                    f"COPY (SELECT * EXCLUDE (clicks, impressions, place), sum(clicks)::BIGINT AS clicks, "
                    f"sum(impressions)::BIGINT AS impressions, count(*) AS rows, min(place) AS place "
                    f"FROM {name} GROUP BY ALL) TO '{quoted(temporary)}' (FORMAT parquet, COMPRESSION zstd)"
                )
        finally:
            connection.execute(f"DROP TABLE IF EXISTS {name}")
            connection.close()
        return cells

    def _select(self) -> str:
        """Return SQL that selects the values of a row; a count without a column is 1 per row."""
        values = []
        for role, (name, kind) in self._roles.items():
            default = "1" if role in ("clicks", "impressions") else "NULL"
            values.append(f"CAST({role if name else default} AS {kind}) AS {role}")
        return f"SELECT {', '.join(values)}, place FROM batch"

    def _renamed(self, rows: Any) -> Any:
        """Return rows with columns named by role, since DuckDB reads only names that are UTF-8."""
        columns = {role: rows[name] for role, (name, _) in self._roles.items() if name is not None}
        return pa.table({**columns, "place": rows["place"]})


def read_parts(
    reader: PartReader, parts: Iterable[Any], folder: Path, layout: str, bar: ProgressBar, threads: int
) -> list[PartCells]:
    """Return the cells of all parts in order, several parts at a time. Raises TableError for the first bad part."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(part: Any) -> PartCells:
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
    for one in cells:
        if one.file:
            os.utime(folder / one.file, (now, now))
    for path in folder.glob("*.parquet"):
        if path.stat().st_mtime < now - CACHE_DAYS * DAY_SECONDS:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def sha256(opened: BinaryIO) -> str:
    """Return the SHA-256 of an open file in hexadecimal, and close it."""
    digest = hashlib.sha256()
    with opened:
        while block := opened.read(BYTES_PER_READ):
            digest.update(block)
    return digest.hexdigest()


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
        "position": (columns.position, "INTEGER"),
        "origin": (columns.source, "VARCHAR"),
        "clicks": (columns.clicks, "BIGINT"),
        "impressions": (columns.impressions, "BIGINT"),
    }
    return roles | {f"attribute_{n}": (name, "VARCHAR") for n, name in enumerate(columns.attributes)}


def _cached(record: Path, file: Path) -> PartCells | None:
    try:
        cells = PartCells.model_validate_json(record.read_bytes())
    except (OSError, ValidationError):  # not cached, or written by another version
        return None
    return cells if not cells.file or file.is_file() else None
