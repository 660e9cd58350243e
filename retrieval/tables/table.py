"""Read a table from one file or a folder of part files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrieval.errors import TableError
from retrieval.tables.delimited import DelimitedFile, Layout
from retrieval.tables.files import DELIMITED, JSON_LINES, PARQUET, kind_of, table_files, unread_files
from retrieval.tables.json_lines import json_rows
from retrieval.tables.notes import Notes
from retrieval.tables.opening import NoReadingProgress, ReadingProgress
from retrieval.tables.values import PlacedRow


class Table:
    """A CSV, TSV, JSON Lines or Parquet table. Empty part files are ignored."""

    def __init__(self, path: Path, layout: Layout | None = None, without: Path | None = None) -> None:
        """Read the headers. `without` is a file of the folder that is not a part.

        Raises TableError if the table does not exist or cannot be read.
        """
        self.path = path
        self.files = table_files(path, without)
        self.unread = unread_files(path, self.files, without)
        self.kind = kind_of(self.files[0])
        filled = [one for one in self.files if one.stat().st_size]
        self._parts: list[Any] = []
        if self.kind == DELIMITED:
            self._parts = [DelimitedFile(one, layout or Layout()) for one in filled]
        elif self.kind == JSON_LINES:
            self._parts = [_JsonFile(one) for one in filled]
        else:
            from retrieval.tables.parquet import ParquetTable

            self._parts = [ParquetTable(one) for one in self.files]
        self._parts = [part for part in self._parts if part.names or self.kind == JSON_LINES]
        self.names = list(dict.fromkeys(name for part in self._parts for name in part.names if name))

    @property
    def has_header(self) -> bool:
        """Return whether all rows have the same columns; in JSON Lines each line may have others."""
        return self.kind != JSON_LINES

    @property
    def is_empty(self) -> bool:
        """Return whether all files are empty."""
        return not self._parts

    def require(self, name: str, option: str) -> None:
        """Raise TableError unless every file with a header has exactly one column `name`; `option` chooses another."""
        if not self.has_header:
            return
        for part in self._parts:
            if name not in part.names:
                has = ", ".join(one or "(no name)" for one in part.names)
                hint = _separator_hint(part)
                raise TableError(f"{part.path} has no column {name!r}. It has: {has}. Name one with {option}.{hint}")
            if part.names.count(name) > 1:
                raise TableError(f"{part.path} has two columns {name!r} in its header. Rename one.")

    def may_hold_lists(self, name: str) -> bool:
        """Return whether a column may contain lists: by its type in Parquet, by the name `labels` elsewhere."""
        if self.kind == PARQUET:
            return any(part.is_list(name) for part in self._parts if name in part.names)
        return name == "labels"

    def rows(self, columns: Sequence[str], progress: ReadingProgress | None = None) -> Iterator[PlacedRow]:
        """Yield each row's place and its values in `columns`; for JSON Lines, the whole object.

        A row that cannot be parsed is a BadRow. Raises TableError for a damaged file.
        """
        for part in self._parts:
            yield from part.rows(columns, progress or NoReadingProgress())

    def arrow(self, columns: Sequence[str]) -> Any:
        """Read some columns of a Parquet table as one Arrow table. Raises TableError if the types of parts differ."""
        import pyarrow as pa

        try:
            tables = [part.arrow(columns) for part in self._parts]
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise TableError(
                f"{self.path}: the part files have different types for a column ({error}). "
                "Write all parts with one schema."
            ) from error

    def notes(self) -> dict[str, int | dict[str, int]]:
        """Return notes about the files, with keys of TABLE_NOTES. Call it after all rows are read."""
        notes = Notes()
        files = [part for part in self._parts if isinstance(part, DelimitedFile)]
        for file in files:
            if file.unusual_separator:
                notes.add("unusual_separators", 1, file.unusual_separator)
            notes.add("quoted_cells", file.unusual_rows.quoted)
            notes.add("multi_line_row_lines", file.unusual_rows.multi_line_lines)
        first = next((file.unusual_rows.first_multi_line for file in files if file.unusual_rows.first_multi_line), "")
        notes.add("multi_line_rows", sum(file.unusual_rows.multi_line for file in files), first)
        for name in self.unread:
            notes.add("unread_files", 1, name)
        return notes.counts()


class _JsonFile:
    """One file of JSON Lines."""

    def __init__(self, path: Path) -> None:
        """Read the first object, whose keys are used as the header."""
        self.path = path
        first = next((row for _, row in json_rows(path, NoReadingProgress()) if row is not None), None)
        self.names: list[str] = list(first) if isinstance(first, dict) else []

    def rows(self, columns: Sequence[str], progress: ReadingProgress) -> Iterator[PlacedRow]:
        """Yield all rows with all keys, so that unused keys can be reported; duplicate `columns` are BadRows."""
        return json_rows(self.path, progress, columns)


def _separator_hint(part: Any) -> str:
    only_one = isinstance(part, DelimitedFile) and len(part.names) == 1
    return " If another character separates its columns, name it with --separator." if only_one else ""
