"""Read a table from one file or a folder of part files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrieval.errors import TableError
from retrieval.tables.delimited import DelimitedFile, Layout
from retrieval.tables.files import DELIMITED, JSON_LINES, PARQUET, kind_of, table_files, unread_files
from retrieval.tables.json_lines import json_rows
from retrieval.tables.opening import Meter, NoMeter
from retrieval.tables.values import BadRow

Record = dict[str, Any]
Row = tuple[str, Record | BadRow | None]  # the place, and the row; None for a blank line


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
                raise TableError(
                    f"{part.path} has no column {name!r}. It has: {has}. Choose with {option}.{_hint(part)}"
                )
            if part.names.count(name) > 1:
                raise TableError(f"{part.path} names column {name!r} twice in its header. Rename one.")

    def may_hold_lists(self, name: str) -> bool:
        """Return whether a column may hold lists: by its type in Parquet, by the name `labels` elsewhere."""
        if self.kind == PARQUET:
            return any(part.is_list(name) for part in self._parts if name in part.names)
        return name == "labels"

    def rows(self, columns: Sequence[str], meter: Meter | None = None) -> Iterator[Row]:
        """Yield each row's place and its values in `columns`; for JSON Lines, the whole object.

        A row that cannot be parsed is a BadRow. Raises TableError for a damaged file.
        """
        for part in self._parts:
            yield from part.rows(columns, meter or NoMeter())

    def arrow(self, columns: Sequence[str]) -> Any:
        """Read some columns of a Parquet table as one Arrow table. Raises TableError if the types of parts differ."""
        import pyarrow as pa

        try:
            tables = [part.arrow(columns) for part in self._parts]
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise TableError(f"{self.path}: the part files differ in the type of a column ({error}).") from error

    def observations(self) -> Counter[str]:
        """Return unusual facts about the files, as sentences with counts; complete after all rows were read."""
        found = Counter[str]()
        first_long = ""
        for part in self._parts:
            if isinstance(part, DelimitedFile):
                if part.unusual:
                    found[f"files read with {part.unusual} between cells, as their headers show"] += 1
                found["rows with cells in quotes, which are kept; --quoting csv removes them"] += part.seen.quoted_rows
                first_long = first_long or part.seen.first_long
                found["long rows"] += part.seen.long_rows
                found["lines in rows that span several"] += part.seen.long_lines
        if rows := found.pop("long rows", 0):
            found[f"rows that span several lines, because of quotes; the first is {first_long}"] = rows
        if self.unread:
            names = ", ".join(self.unread[:5]) + (", …" if len(self.unread) > 5 else "")
            found[f"files of the folder that were not read: {names}"] = len(self.unread)
        return +found


class _JsonFile:
    """One file of JSON Lines."""

    def __init__(self, path: Path) -> None:
        """Read the first object, whose keys are used as the header."""
        self.path = path
        first = next((row for _, row in json_rows(path, NoMeter()) if row is not None), None)
        self.names: list[str] = list(first) if isinstance(first, dict) else []

    def rows(self, columns: Sequence[str], meter: Meter) -> Iterator[Row]:
        """Yield all rows with all keys, so that unused keys can be reported; duplicate `columns` are BadRows."""
        return json_rows(self.path, meter, columns)


def _hint(part: Any) -> str:
    only_one = isinstance(part, DelimitedFile) and len(part.names) == 1
    return " If another character separates its columns, name it with --separator." if only_one else ""
