"""Read JSON Lines: one object per line. Arrow reads blocks of usual lines, Python's json module the others."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as arrow_json

from retrieval.errors import TableError
from retrieval.tables.batches import Chunk, Part
from retrieval.tables.files import TableFile
from retrieval.tables.lines import Block, LineBlocks
from retrieval.tables.opening import NoReadingProgress, ReadingProgress, opened
from retrieval.tables.values import BadRow, Missing, PlacedRow, Record, preview, refuse_surrogates

_BETWEEN_OBJECTS = re.compile(rb"\}[ \t]*\r?\n[ \t]*\{")


class JsonPart(Part):
    """One file of JSON Lines. A line with a duplicate key of a requested column is a bad row."""

    has_fixed_columns = False

    def __init__(self, file: TableFile) -> None:
        """Read the first object, whose keys are used as the header."""
        super().__init__(file)
        first = next((row for _, row in self.records((), NoReadingProgress()) if row is not None), None)
        self.stored_names = list(first) if isinstance(first, dict) else []

    def chunks(self, columns: Sequence[str], progress: ReadingProgress) -> Iterator[list[Chunk]]:
        """Yield consecutive rows. Raises TableError for a damaged file, and for a JSON array."""
        for block in self._blocks(progress):
            yield [self._read_fast(block, columns) or self._read_lines(block, range(len(block)), columns)]

    def records(self, used: Sequence[str], progress: ReadingProgress) -> Iterator[tuple[int, Record | BadRow | None]]:
        """Yield each line's number and its object; BadRow for an invalid line, None for a blank line."""
        for block in self._blocks(progress):
            for line in range(len(block)):
                yield block.first + line, _record(block.text_of(line).strip(), used)

    def _blocks(self, progress: ReadingProgress) -> Iterator[Block]:
        """Yield all blocks, none for a file with only `[]`. Raises TableError for any other JSON array."""
        with opened(self.file) as text:
            blocks, is_start = LineBlocks(text), True
            self.layout = "" if text.encoding == "UTF-8" else f"encoding {text.encoding}"
            while (block := blocks.read()) is not None:
                if is_start and (stripped := block.data.strip()):
                    is_start = False
                    if stripped == b"[]" and block.is_last:
                        return
                    if stripped.startswith(b"["):
                        _refuse_array(self.file.location, stripped.splitlines()[0].decode("utf-8", "replace").strip())
                yield block
                progress.at(self.name, text.tell())
        progress.finish(self.size)

    def _read_fast(self, block: Block, columns: Sequence[str]) -> Chunk | None:
        """Read a block with Arrow; None if a line is blank or not an object, or if a column has several types."""
        data = block.data.strip()
        first = _record(block.text_of(0).strip(), columns)
        if not isinstance(first, dict) or len(_BETWEEN_OBJECTS.findall(data)) != len(block) - 1:
            return None
        try:
            table = arrow_json.read_json(
                pa.BufferReader(data),
                arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                arrow_json.ParseOptions(explicit_schema=_schema(first, columns), unexpected_field_behavior="infer"),
            ).combine_chunks()
        except (pa.ArrowException, UnicodeDecodeError):
            return None
        if table.num_rows != len(block) or block.is_not_utf8().any():
            return None
        self._count_unused({name: table.num_rows - table[name].null_count for name in table.column_names}, columns)
        places_N = block.first + np.arange(len(block))
        return Chunk(
            {name: table[name].chunk(0) for name in columns},
            places_N,
            reread=lambda places: self._read_lines(block, [place - block.first for place in places], columns),
        )

    def _read_lines(self, block: Block, lines: Sequence[int], columns: Sequence[str]) -> Chunk:
        """Read lines one by one."""
        values: dict[str, list[Any]] = {name: [] for name in columns}
        places: list[int] = []
        bad: dict[int, str] = {}
        blank: list[int] = []
        for line in lines:
            place, record = block.first + line, _record(block.text_of(line).strip(), columns)
            if record is None:
                blank.append(place)
            elif isinstance(record, BadRow):
                bad[place] = str(record)
            else:
                places.append(place)
                for name, column in values.items():
                    column.append(record[name] if name in record else Missing(tuple(record)))
                self._count_unused(dict.fromkeys(record, 1), columns)
        return Chunk(values, np.array(places, np.int64), bad, blank)

    def _count_unused(self, rows_by_key: Mapping[str, int], columns: Sequence[str]) -> None:
        for name, count in rows_by_key.items():
            if name not in columns:
                self.unused[name] += count


def json_rows(path: Path, progress: ReadingProgress, used: Sequence[str] = ()) -> Iterator[PlacedRow]:
    """Yield each line's place and its object; BadRow for an invalid line, None for a blank line. Raises TableError."""
    for number, record in JsonPart(TableFile.local(path)).records(used, progress):
        yield f"{path.name} line {number}", record


def _schema(first: Record, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, _type_of(first.get(name))) for name in columns])


def _type_of(value: Any) -> Any:
    """Return the Arrow type to read a column whose first value is this; Arrow would read texts as times."""
    if isinstance(value, list):
        return pa.list_(_type_of(value[0] if value else None))
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return types.get(type(value), pa.string())


def _record(line: str, used: Sequence[str]) -> Record | BadRow | None:
    """Return the object of one line, without white space around it; None for a blank line."""
    if not line:
        return None
    try:
        record = json_record(line)
        for key in used:
            quoted = json.dumps(key, ensure_ascii=False)
            if line.count(quoted) > 1:
                _refuse_duplicate_key(line, quoted)
    except BadRow as bad:
        return bad
    return record


def json_record(line: str) -> Record:
    """Parse the object of one line. Raises BadRow if it is not a JSON object."""
    try:
        value = _parsed(line)
    except json.JSONDecodeError as error:
        if not line.isascii():
            refuse_surrogates(line, "the line")
        raise BadRow(
            f"{preview(line)} is not JSON ({error.msg}, column {error.colno}). Write one JSON object per line."
        ) from error
    except RecursionError as error:
        raise BadRow("the JSON is nested too deeply. Write one flat JSON object per line.") from error
    if not isinstance(value, dict):
        raise BadRow(f'{preview(value)} is not a JSON object. Write one object per line, such as {{"query": …}}.')
    return value


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer with more digits than Python converts; harmless in an unused column
        return json.loads(line, parse_int=_integer)


def _refuse_duplicate_key(line: str, key: str) -> None:
    """Raise BadRow if the object has the key twice. Nested keys and values do not count."""
    pairs = json.loads(line, object_pairs_hook=list, parse_int=_integer)
    name = json.loads(key)
    if sum(one == name for one, _ in pairs) > 1:
        raise BadRow(f"the key {key} occurs twice. Remove one.")


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < 1_000 else Decimal(digits)


def _refuse_array(location: Path | str, line: str) -> None:
    """Raise TableError if the first line starts an array of objects, on one line or several."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if value is None or (value and isinstance(value[0], dict)):
        raise TableError(
            f"{location} contains a JSON array. Write one object per line, for example with `jq -c '.[]' FILE`."
        )
