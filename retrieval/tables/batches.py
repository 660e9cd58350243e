"""Parse the rows of a file in batches, which are rows, bad rows and blank rows.

Suffix: N rows.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.errors import TableError
from retrieval.tables.columns import Parser
from retrieval.tables.files import TableFile
from retrieval.tables.opening import NoReadingProgress, ReadingProgress

PLACE = "place"  # the column of line or row numbers


@dataclass(frozen=True)
class Chunk:
    """Rows as they are stored. Each column is an Arrow array or a list of Python values; a place is a line or row."""

    columns: Mapping[str, Any]
    places_N: NDArray[np.int64]  # where each row begins
    bad: Mapping[int, str] = field(default_factory=dict)  # message by place
    blank: Sequence[int] = ()  # places
    last_lines: Mapping[int, int] = field(default_factory=dict)  # of rows that span several lines, by place
    # Reads the rows at some places again, one by one, for exact messages.
    reread: Callable[[list[int]], "Chunk"] | None = None


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of one file. read = rows + bad + blank."""

    rows: pa.Table  # accepted rows: the requested columns, and `place`, the line or row where a row begins
    bad: list[tuple[str, str]]  # place and message
    bad_places: list[int]
    blank_places: list[int]

    @property
    def blank(self) -> int:
        """Return the number of blank rows."""
        return len(self.blank_places)

    @property
    def read(self) -> int:
        """Return the number of rows, with bad and blank ones."""
        return int(self.rows.num_rows) + len(self.bad) + self.blank


class Part(ABC):
    """One file of a table. `unused` counts the rows with a key that was not requested, in the last pass."""

    unit = "line"

    def __init__(self, file: TableFile) -> None:
        """`names` are the columns of the file, and those that its path gives."""
        self.file = file
        self.stored_names: list[str] = []
        self.unused = Counter[str]()
        self.layout = ""

    @property
    def names(self) -> list[str]:
        """Return the columns of the file, and those that its path gives."""
        return self.stored_names + self.path_columns

    @property
    def path_columns(self) -> list[str]:
        """Return the columns that only the path of the file gives."""
        return [name for name in self.file.values if name not in self.stored_names]

    @property
    def name(self) -> str:
        """Return the name of the file for messages."""
        return self.file.name

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.file.size

    def open_bytes(self) -> BufferedReader:
        """Open the file as it is stored."""
        return self.file.open_bytes()

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the file as it is stored, in hexadecimal."""
        with self.open_bytes() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @abstractmethod
    def chunks(self, columns: Sequence[str], progress: ReadingProgress) -> Iterator[list[Chunk]]:
        """Yield consecutive rows; the chunks of one list are in any order. Raises TableError for a damaged file."""

    def batches(self, columns: Mapping[str, Parser], progress: ReadingProgress | None = None) -> Iterator[Batch]:
        """Yield all rows. Raises TableError for a damaged file, and for a column of a type that cannot be read."""
        self.unused.clear()
        stored = [name for name in columns if self.may_store(name)]
        for chunks in self.chunks(stored, progress or NoReadingProgress()):
            batches = [self._parsed(chunk, columns) for chunk in chunks]
            yield batches[0] if len(batches) == 1 else _merged(batches)

    def may_store(self, name: str) -> bool:
        """Return whether rows may have a value of a column."""
        return name in self.stored_names

    def is_list(self, name: str) -> bool:
        """Return whether a column holds lists; False where types are not stored."""
        return False

    def place_text(self, place: int, last: int | None = None) -> str:
        """Return the text of a place for messages."""
        lines = f"{self.unit} {place}" if last is None else f"lines {place}–{last}"
        return f"{self.name} {lines}"

    def _parsed(self, chunk: Chunk, columns: Mapping[str, Parser]) -> Batch:
        parsed: dict[str, Any] = {}
        rejected: dict[int, str] = {}
        for name, parser in columns.items():
            values = self.values(chunk, name, parser)
            try:
                parsed[name], messages = parser.parse(values, name)
            except TableError as error:  # the parser does not know the file
                raise TableError(f"{self.file.location}: {error}") from error
            for row, message in messages.items():
                rejected.setdefault(row, message)
        places = chunk.places_N.tolist() if rejected else []
        rows = pa.table({**parsed, PLACE: pa.array(chunk.places_N)})
        if rejected:
            accepted_N = np.ones(len(chunk.places_N), np.bool_)
            accepted_N[list(rejected)] = False
            rows = rows.filter(pa.array(accepted_N))
        bad = {**chunk.bad, **{places[row]: message for row, message in rejected.items()}}
        if rejected and chunk.reread is not None:
            again = self._parsed(chunk.reread([places[row] for row in sorted(rejected)]), columns)
            return _merged([self._batch(rows, chunk.bad, chunk), again])
        return self._batch(rows, bad, chunk)

    def _batch(self, rows: pa.Table, bad: Mapping[int, str], chunk: Chunk) -> Batch:
        places = sorted(bad)
        texts = [(self.place_text(place, chunk.last_lines.get(place)), bad[place]) for place in places]
        return Batch(rows, texts, places, list(chunk.blank))

    def values(self, chunk: Chunk, name: str, parser: Parser) -> Any:
        """Return a column of a chunk; null, or the value that the path gives, if the file does not have it.

        Raises TableError if the parser cannot read the type of the column.
        """
        if name not in chunk.columns:
            return pa.repeat(pa.scalar(self.file.values.get(name), pa.large_string()), len(chunk.places_N))
        values = chunk.columns[name]
        if isinstance(values, pa.Array) and not parser.reads(values.type):
            raise TableError(
                f"{self.file.location}: column {name!r} has the type {values.type}, not text or numbers. "
                "Name another column."
            )
        return values


def _merged(batches: list[Batch]) -> Batch:
    """Join batches in the order of places."""
    filled = [one.rows for one in batches if one.rows.num_rows] or [batches[0].rows]
    rows = filled[0]
    if len(filled) > 1:
        try:
            rows = pa.concat_tables(filled, promote_options="permissive").combine_chunks()
        except pa.ArrowException as error:
            raise TableError(f"a column contains values of different types ({error}). Use one type.") from error
        rows = rows.take(pa.array(np.argsort(rows[PLACE].to_numpy(), kind="stable")))
    bad = sorted((place, text) for one in batches for place, text in zip(one.bad_places, one.bad, strict=True))
    blank = sorted(place for one in batches for place in one.blank_places)
    return Batch(rows, [text for _, text in bad], [place for place, _ in bad], blank)
