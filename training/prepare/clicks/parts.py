"""Read the part files of a click log into blocks, which a cache keeps for the next run.

The blocks of a part are named by the content of the part and the options that they depend on. The parts of one day are
merged to one block, which the cache keeps too, so a rolling window reads only new files and merges few blocks.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from retrieval.errors import DatasetError
from retrieval.system.atomic_files import PARTIAL, atomic_file
from retrieval.tables.batches import Part
from retrieval.tables.columns import Attribute, Count, Day, Identifier, Parser, Text
from retrieval.tables.opening import ReadingProgress
from retrieval.tables.table import part_notes
from training.prepare.bad_rows import MAX_MESSAGES, escape_surrogates, escaped_names
from training.prepare.clicks.blocks import (
    ATTRIBUTE,
    DIMENSIONS,
    Block,
    BlockForm,
    MergedBlocks,
    RowSource,
    write_block,
)  # fmt: skip
from training.prepare.progress_bar import ProgressBar
from training.prepare.sources.columns import Columns
from training.prepare.sources.split_parser import SplitForm, SplitParser

Record = TypeVar("Record", bound=BaseModel)

BLOCK_VERSION = 2  # increase it when the same part gives other blocks
CACHE_DAYS = 90  # a cached file that no run has used for so long is removed
DAY_SECONDS = 86_400
ROWS_PER_BLOCK = 4_000_000  # of a part, which are in memory at once


class PartBlocks(BaseModel):
    """The blocks of one part, and the counts of its rows."""

    blocks: list[Block] = []  # none for a part without rows
    read: int = 0
    blank: int = 0
    bad: int = 0
    messages: list[str] = []
    notes: dict[str, int | dict[str, int]] = {}  # of the part, such as rows in several lines
    more_clicks_than_impressions: int = 0

    @property
    def only_day(self) -> str | None:
        """Return the day of all rows; None if there are several, or none."""
        days = {day for block in self.blocks for day in block.days}
        return next(iter(days)) if len(days) == 1 else None


class PartReader:
    """Reads parts with the same columns and options into blocks in a folder."""

    def __init__(
        self, connection: Any, folder: Path, columns: Columns, layout: str, max_characters: int, *, keys_are_ids: bool
    ) -> None:
        """`layout`: options of text files; `keys_are_ids`: labels are ids, which may be numbers, and not texts."""
        self._connection, self._folder, self._columns, self._layout = connection, folder, columns, layout
        self._parsers = _parsers(columns, max_characters, keys_are_ids)
        self._roles = _roles(columns)
        dimensions = tuple(name for name in DIMENSIONS if name in self._roles)
        self.form = BlockForm(dimensions, columns.label_text is not None, len(columns.attributes))
        folder.mkdir(parents=True, exist_ok=True)

    def key(self, part: Part) -> str:
        """Return the name of the blocks of a part: a SHA-256 of all that they depend on."""
        parsers = {name: repr(parser) for name, parser in self._parsers.items()}
        values = dict(part.file.values)
        return _hash(
            [BLOCK_VERSION, part.sha256, part.name, self._layout, values, parsers, sorted(self._roles.items())]
        )

    def read(self, part: Part, progress: ReadingProgress) -> PartBlocks:
        """Return the blocks of a part, from the folder if it has them. Raises TableError."""
        key = self.key(part)
        record = self._folder / f"{key}.json"
        if (cached := _cached(PartBlocks, record)) and all(map(self._is_complete, cached.blocks)):
            progress.finish(part.size)
            return cached
        result = self._read(part, key, progress)
        _write_record(record, result)
        return result

    def merged(self, parts: Sequence[PartBlocks]) -> Block:
        """Return the blocks of some parts as one, from the folder if it has it."""
        blocks = [block for part in parts for block in part.blocks]
        if len(blocks) == 1:
            return blocks[0]
        key = _hash([[block.name for block in part.blocks] for part in parts])
        record = self._folder / f"{key}.json"
        if (cached := _cached(Block, record)) and self._is_complete(cached):
            return cached
        numbers = [number for number, part in enumerate(parts) for _ in part.blocks]
        source = MergedBlocks(self._folder, blocks, numbers, self.form)
        with self._connection.cursor() as connection:
            block = write_block(connection, self._folder, key, source)
        _write_record(record, block)
        return block

    def _is_complete(self, block: Block) -> bool:
        return all(path.is_file() for path in block.paths(self._folder).values())

    def _read(self, part: Part, key: str, progress: ReadingProgress) -> PartBlocks:
        result, split_form = PartBlocks(), SplitForm()
        with self._connection.cursor() as connection:
            rows: list[Any] = []
            for batch in part.batches(self._parsers, progress):
                accepted, bad = batch.rows, list(batch.bad)
                if self._columns.split:
                    differs_N, message = split_form.differing(accepted[self._columns.split])
                    places = accepted["place"].filter(pa.array(differs_N)).to_pylist()
                    bad += [(part.place_text(place), message) for place in places]
                    accepted = accepted.filter(pa.array(~differs_N))
                result.read += batch.read
                result.blank += batch.blank
                result.bad += len(bad)
                listed = bad[: MAX_MESSAGES - len(result.messages)]
                result.messages += [escape_surrogates(f"{where}: {message}") for where, message in listed]
                rows.append(self._named_by_role(accepted))
                if sum(table.num_rows for table in rows) >= ROWS_PER_BLOCK:
                    self._add_block(connection, result, key, rows)
            self._add_block(connection, result, key, rows)
        notes = part_notes(part) | ({"unused_columns": dict(part.unused)} if part.unused else {})
        result.notes = escaped_names(notes)
        return result

    def _named_by_role(self, rows: Any) -> Any:
        columns = {role: rows[name] for role, name in self._roles.items()}
        columns |= {role: _as_text(column) for role, column in columns.items() if role.startswith(ATTRIBUTE)}
        return pa.table({**columns, "place": rows["place"]})

    def _add_block(self, connection: Any, result: PartBlocks, key: str, tables: list[Any]) -> None:
        """Write the rows of some tables as a block, if there are any, and clear the list."""
        rows = pa.concat_tables(tables) if tables else None
        tables.clear()
        if rows is None or not rows.num_rows:
            return
        if {"clicks", "impressions"} <= set(rows.column_names):
            more = pc.sum(pc.greater(rows["clicks"], rows["impressions"])).as_py()
            result.more_clicks_than_impressions += int(more or 0)
        name = f"{key}-{len(result.blocks)}"
        result.blocks.append(write_block(connection, self._folder, name, RowSource(rows, self.form)))


def read_parts(reader: PartReader, parts: Iterable[Part], bar: ProgressBar, threads: int) -> list[PartBlocks]:
    """Return the blocks of all parts in order, several parts at a time. Raises TableError for the first bad part."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(reader.read, part, bar.part()) for part in parts]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def merge_days(reader: PartReader, parts: Sequence[PartBlocks], threads: int) -> tuple[list[Block], list[int]]:
    """Merge consecutive parts of the same day to one block; return all blocks, and the first part of each."""
    groups: list[list[tuple[int, PartBlocks]]] = []
    for day, numbered in groupby(enumerate(parts), lambda part: part[1].only_day):
        members = [(number, part) for number, part in numbered if part.blocks]
        groups += [members] if day else [[member] for member in members]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        blocks = list(pool.map(lambda group: reader.merged([part for _, part in group]), groups))
    return blocks, [group[0][0] for group in groups]


def unmerged(parts: Sequence[PartBlocks]) -> tuple[list[Block], list[int]]:
    """Return all blocks, and the part of each."""
    numbered = [(block, number) for number, part in enumerate(parts) for block in part.blocks]
    return [block for block, _ in numbered], [number for _, number in numbered]


def remove_unused(folder: Path, parts: Iterable[PartBlocks], merged: Iterable[Block]) -> None:
    """Mark the files of this run as used now, and remove those that no run has used for CACHE_DAYS."""
    now = time.time()
    for block in [*merged, *(block for part in parts for block in part.blocks)]:
        for path in block.paths(folder).values():
            os.utime(path, (now, now))
    limits = {f".*{PARTIAL}": 1, "*.parquet": CACHE_DAYS}  # in days; the first are of runs that were killed
    for pattern, days in limits.items():
        for path in folder.glob(pattern):
            with suppress(FileNotFoundError):  # another run may remove it
                if path.stat().st_mtime < now - days * DAY_SECONDS:
                    path.unlink()
                    path.with_name(f"{path.name.partition('.')[0].partition('-')[0]}.json").unlink(missing_ok=True)


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


def _roles(columns: Columns) -> dict[str, str]:
    """Return the source's column of each value of a row that the source has, by its name in blocks."""
    roles = {
        "query": columns.query,
        "label": columns.label,
        "label_text": columns.label_text,
        "split": columns.split,
        "day": columns.date,
        "position": columns.position,
        "origin": columns.source,
        "clicks": columns.clicks,
        "impressions": columns.impressions,
    }
    roles |= {f"{ATTRIBUTE}{number}": name for number, name in enumerate(columns.attributes)}
    return {role: name for role, name in roles.items() if name is not None}


def _as_text(column: Any) -> Any:
    """Return an attribute as text: its Arrow type may differ between batches. Raises DatasetError."""
    try:
        return column.cast(pa.large_string())
    except pa.ArrowException as error:
        raise DatasetError(
            f"An attribute of the log has the type {column.type}, not text or numbers. Put it into a label table, and "
            "give the table with --labels."
        ) from error


def _hash(described: Any) -> str:
    return hashlib.sha256(json.dumps(described).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _cached(kind: type[Record], path: Path) -> Record | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # not cached, or written by another version
        return None


def _write_record(path: Path, record: BaseModel) -> None:
    with atomic_file(path, unique=True) as temporary:
        temporary.write_text(record.model_dump_json(), encoding="utf-8")
