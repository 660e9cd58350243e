"""Read a table from files, a folder of part files, or daily partitions, on disk or behind a URL."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from retrieval.errors import TableError
from retrieval.system.urls import as_url
from retrieval.tables.batches import Batch, Part
from retrieval.tables.columns import Parser
from retrieval.tables.delimited import DelimitedPart, Layout
from retrieval.tables.files import DELIMITED, JSON_LINES, WILDCARDS, find_files, kind_of, stem
from retrieval.tables.json_lines import JsonPart
from retrieval.tables.notes import Notes
from retrieval.tables.opening import ReadingProgress


class Table:
    """A CSV, TSV, JSON Lines or Parquet table. Empty part files are ignored."""

    def __init__(self, source: Path | str, layout: Layout | None = None, without: Path | str | None = None) -> None:
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
    def name(self) -> str:
        """Return the name of the file without its endings, or that of the folder if the table has several files."""
        if len(self.files) == 1:
            return stem(self.files[0].name)
        path = PurePath(str(self.path))
        while WILDCARDS.search(path.name):
            path = path.parent
        return path.name or Path(path).resolve().name

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
        if not name.isascii() and name != name.encode("utf-8", "replace").decode():
            raise TableError(f"{self.path}: column {name!r} has a name that is not UTF-8. Rename it.")
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

    def batches(self, columns: Mapping[str, Parser], progress: ReadingProgress | None = None) -> Iterator[Batch]:
        """Yield the rows of all files in order. Raises TableError for a damaged file."""
        for part in self.parts:
            yield from part.batches(columns, progress)

    def notes(self) -> dict[str, int | dict[str, int]]:
        """Return notes about the files, with keys of TABLE_NOTES. Call it after all rows are read."""
        notes = Notes()
        for part in self.parts:
            notes.update(part_notes(part))
        for name in self.unread:
            notes.add("unread_files", 1, name)
        return notes.counts()


def part_notes(part: Part) -> dict[str, int | dict[str, int]]:
    """Return notes about one file. Call it after all rows are read."""
    notes = Notes()
    if isinstance(part, DelimitedPart):
        if part.unusual_separator:
            notes.add("unusual_separators", 1, part.unusual_separator)
        notes.add("quoted_cells", part.unusual_rows["quoted_cells"])
        notes.add("multi_line_row_lines", part.unusual_rows["multi_line_row_lines"])
        notes.add("multi_line_rows", part.unusual_rows["multi_line_rows"], part.first_multi_line)
    for name in part.path_columns:
        notes.add("path_columns", 1, name)
    return notes.counts()


def _separator_hint(part: Part) -> str:
    only_one = isinstance(part, DelimitedPart) and len(part.names) == 1
    return " If another character separates its columns, name it with --separator." if only_one else ""
