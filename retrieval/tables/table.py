"""Read a table from files, a folder of part files, or daily partitions, on disk or behind a URL."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrieval.errors import TableError
from retrieval.system.urls import as_url
from retrieval.tables.arrow_types import python_values
from retrieval.tables.batches import Batch, Part
from retrieval.tables.columns import Identifier, Parser
from retrieval.tables.delimited import DelimitedPart, Layout
from retrieval.tables.files import DELIMITED, JSON_LINES, PARQUET, find_files, kind_of
from retrieval.tables.json_lines import JsonPart
from retrieval.tables.notes import Notes
from retrieval.tables.opening import NoReadingProgress, ReadingProgress
from retrieval.tables.values import BadRow, PlacedRow


class Table:
    """A CSV, TSV, JSON Lines or Parquet table. Empty part files are ignored."""

    def __init__(self, source: Path | str, layout: Layout | None = None, without: Path | None = None) -> None:
        """Read the headers. `without` is a file of the folder that is not a part; see `find_files` for `source`.

        Raises TableError if the table does not exist or cannot be read.
        """
        self.path: Any = as_url(source) or source  # a Path or str
        self.files, self.unread = find_files(source, without)
        self.kind = kind_of(self.files[0].location)
        self.parts: list[Part] = []
        if self.kind == DELIMITED:
            self.parts = [DelimitedPart(one, layout or Layout()) for one in self.files if one.size]
        elif self.kind == JSON_LINES:
            self.parts = [JsonPart(one) for one in self.files if one.size]
        else:
            from retrieval.tables.parquet import ParquetPart

            self.parts = [ParquetPart(one) for one in self.files]
        self.parts = [part for part in self.parts if part.stored_names or self.kind == JSON_LINES]
        self.names = list(dict.fromkeys(name for part in self.parts for name in part.names if name))

    @property
    def has_header(self) -> bool:
        """Return whether all rows have the same columns; in JSON Lines each line may have others."""
        return self.kind != JSON_LINES

    @property
    def is_empty(self) -> bool:
        """Return whether all files are empty."""
        return not self.parts

    @property
    def path_columns(self) -> list[str]:
        """Return the columns that the paths give to files without these columns."""
        return list(
            dict.fromkeys(name for part in self.parts for name in part.file.values if name not in part.stored_names)
        )

    @property
    def layouts(self) -> Mapping[str, int]:
        """Return the number of files by separator and encoding, such as `separator ';'; encoding UTF-16`."""
        return Counter(part.layout for part in self.parts if part.layout)

    def require(self, name: str, option: str) -> None:
        """Raise TableError unless every file with a header has exactly one column `name`; `option` chooses another."""
        if not self.has_header:
            return
        for part in self.parts:
            location = part.file.location
            if name not in part.names:
                has = ", ".join(one or "(no name)" for one in part.names)
                hint = _separator_hint(part)
                raise TableError(f"{location} has no column {name!r}. It has: {has}. Name one with {option}.{hint}")
            if part.names.count(name) > 1:
                raise TableError(f"{location} has two columns {name!r} in its header. Rename one.")

    def may_hold_lists(self, name: str) -> bool:
        """Return whether a column may contain lists: by its type in Parquet, by the name `labels` elsewhere."""
        if self.kind == PARQUET:
            return any(part.is_list(name) for part in self.parts)
        return name == "labels"

    def batches(self, columns: Mapping[str, Parser], progress: ReadingProgress | None = None) -> Iterator[Batch]:
        """Yield the rows of all files in order. Raises TableError for a damaged file."""
        for part in self.parts:
            yield from part.batches(columns, progress)

    def unused(self) -> Mapping[str, int]:
        """Return the number of rows in JSON Lines by each key that was not requested, in the last pass."""
        return sum((part.unused for part in self.parts), Counter[str]())

    def rows(self, columns: Sequence[str], progress: ReadingProgress | None = None) -> Iterator[PlacedRow]:
        """Yield each row's place and its values in `columns`; for JSON Lines, the whole object.

        A row that cannot be parsed is a BadRow. Raises TableError for a damaged file.
        """
        for part in self.parts:
            yield from _rows(part, columns, progress or NoReadingProgress())

    def arrow(self, columns: Sequence[str]) -> Any:
        """Read some columns of a Parquet table as one Arrow table. Raises TableError if the types of parts differ."""
        import pyarrow as pa

        try:
            tables = [
                pa.table(dict(chunk.columns))
                for part in self.parts
                for chunks in part.chunks(columns, NoReadingProgress())
                for chunk in chunks
            ]
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise TableError(
                f"{self.path}: the part files have different types for a column ({error}). "
                "Write all parts with one schema."
            ) from error

    def notes(self) -> dict[str, int | dict[str, int]]:
        """Return notes about the files, with keys of TABLE_NOTES. Call it after all rows are read."""
        notes = Notes()
        files = [part for part in self.parts if isinstance(part, DelimitedPart)]
        for file in files:
            if file.unusual_separator:
                notes.add("unusual_separators", 1, file.unusual_separator)
            notes.add("quoted_cells", file.unusual_rows["quoted_cells"])
            notes.add("multi_line_row_lines", file.unusual_rows["multi_line_row_lines"])
        first = next((file.first_multi_line for file in files if file.first_multi_line), "")
        notes.add("multi_line_rows", sum(file.unusual_rows["multi_line_rows"] for file in files), first)
        for part in self.parts:
            for name in part.path_columns:
                notes.add("path_columns", 1, name)
        for name in self.unread:
            notes.add("unread_files", 1, name)
        return notes.counts()


def _rows(part: Part, columns: Sequence[str], progress: ReadingProgress) -> Iterator[PlacedRow]:
    stored = [name for name in columns if name in part.stored_names]
    if isinstance(part, JsonPart):
        for number, record in part.records(columns, progress):
            yield part.place_text(number), record
        return
    for chunks in part.chunks(stored, progress):
        rows: dict[int, tuple[str, Any]] = {}
        for chunk in chunks:
            texts = {place: part.place_text(place, last) for place, last in chunk.last_lines.items()}
            values = zip(*(python_values(part.values(chunk, name, Identifier())) for name in columns), strict=True)
            records = (dict(zip(columns, record, strict=True)) for record in values)
            contents: dict[int, Any] = dict(zip(chunk.places_N.tolist(), records, strict=True))
            contents |= {place: BadRow(message) for place, message in chunk.bad.items()}
            contents |= dict.fromkeys(chunk.blank)
            rows |= {place: (texts.get(place) or part.place_text(place), row) for place, row in contents.items()}
        yield from (rows[place] for place in sorted(rows))


def _separator_hint(part: Part) -> str:
    only_one = isinstance(part, DelimitedPart) and len(part.names) == 1
    return " If another character separates its columns, name it with --separator." if only_one else ""
