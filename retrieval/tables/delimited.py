"""Read CSV and TSV. The separator is detected from the header; an unmatched quote invalidates only its line."""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

from retrieval.errors import BadInput, TableError
from retrieval.tables.files import ending
from retrieval.tables.opening import LINES_PER_PROGRESS_UPDATE, MAX_LINE, ReadingProgress, line_too_long, opened_text
from retrieval.tables.values import BadRow, PlacedRow, preview

SEPARATORS = (",", "\t", ";", "|", "\x01")  # the last one is Hive's
SAMPLE_LINES, SAMPLE_CHARACTERS = 50, 2**20
MAX_RECORD_LINES = 1_000  # of one quoted row; a quote that stays open for longer is not one that encloses a cell
NAMES = {"\t": "tab", "\x01": "character 1"}

Quoting = Literal["auto", "csv", "none"]


@dataclass(frozen=True)
class Layout:
    """Separator and quoting of CSV and TSV; None and `auto`: detected from the file."""

    separator: str | None = None
    quoting: Quoting = "auto"

    @classmethod
    def of(cls, separator: str | None, quoting: Quoting) -> "Layout":
        """Build from a command's options; `\\t` and `tab` are a tab. Raises BadInput for an invalid separator."""
        named = {"\\t": "\t", "tab": "\t"}.get(separator or "", separator)
        if named is not None and (len(named) != 1 or named in '"\r\n'):
            raise BadInput(f"--separator is {separator!r}. Give one character other than a quote, or tab.")
        return cls(named, quoting)


@dataclass
class UnusualRows:
    """Counts of rows that span several lines, and of rows with quotes that are part of the text."""

    multi_line: int = 0
    multi_line_lines: int = 0
    first_multi_line: str = ""
    quoted: int = 0

    def add_multi_line(self, place: str, lines: int) -> None:
        """Count a row that spans several lines."""
        self.first_multi_line = self.first_multi_line or place
        self.multi_line += 1
        self.multi_line_lines += lines


class DelimitedFile:
    """One CSV or TSV file with its header. An empty file has no columns and no rows."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Read the header. Raises TableError if there is none or its quotes do not match."""
        csv.field_size_limit(MAX_LINE)
        self.path = path
        self._usual = "\t" if ending(path) == ".tsv" else ","
        sample = _sample(path)
        marked = _marked_separator(sample)
        self._skip = 1 if marked else 0
        lines = [line for line in sample[self._skip :] if line.strip()]
        self.separator = layout.separator or marked or _guess(lines, self._usual)
        self.quoted = layout.quoting == "csv" or (layout.quoting == "auto" and self._uses_quotes(lines))
        self._trusts_quotes = layout.quoting == "csv"
        header = self._header(lines)
        self._cells = len(header)  # in the header line; more than `names` if it ends in separators
        self.names = header
        while self.names and not self.names[-1]:
            self.names = self.names[:-1]
        if lines and not self.names:
            raise TableError(f"{path} has no header line. Name the columns in the first line.")
        self.unusual_rows = UnusualRows()
        self.unusual_separator = "" if layout.separator or self.separator == self._usual else _name(self.separator)

    def rows(self, columns: Sequence[str], progress: ReadingProgress) -> Iterator[PlacedRow]:
        """Yield each row's place and its cells in `columns`, None where empty; BadRow; None for a blank line."""
        self.unusual_rows = UnusualRows()
        positions = [(name, self.names.index(name)) for name in columns]
        width, most = len(self.names), max(self._cells, len(self.names))
        for where, cells in self._records(progress):
            if isinstance(cells, BadRow):
                yield where, cells
            elif len(cells) == width or self._has_only_empty_extras(cells, width, most):
                record = {name: cells[position] or None for name, position in positions}
                if width > 1 and not any(record.values()) and not any(map(str.strip, cells)):
                    yield where, None
                else:
                    yield where, record
            elif len(cells) <= 1 and not "".join(cells).strip():
                yield where, None
            else:
                shape = f"the row has {len(cells)} fields ({preview(cells)}), the header has {width}"
                yield where, BadRow(f"{shape}. Correct the row.")

    def _has_only_empty_extras(self, cells: list[str], width: int, most: int) -> bool:
        """Return whether all extra cells are in unnamed columns or empty."""
        return len(cells) > width and not any(map(str.strip, cells[most:]))

    def _records(self, progress: ReadingProgress) -> Iterator[tuple[str, list[str] | BadRow]]:
        with opened_text(self.path) as (text, raw):
            lines, header = _Lines(self.path, text), True
            read = self._quoted(lines) if self.quoted else self._plain(lines)
            for start, end, cells in read:
                if end % LINES_PER_PROGRESS_UPDATE == 0:
                    progress.at(self.path.name, raw.tell())
                if start <= self._skip:
                    continue
                if header:
                    header = not (isinstance(cells, BadRow) or "".join(cells).strip())
                    continue
                place = f"line {end}" if start == end else f"lines {start}–{end}"
                if start != end:
                    self.unusual_rows.add_multi_line(f"{self.path.name} {place}", end - start + 1)
                yield f"{self.path.name} {place}", cells
        progress.finish(self.path.stat().st_size)

    def _plain(self, lines: "_Lines") -> Iterator[tuple[int, int, list[str]]]:
        separator, quote = self.separator, '"'
        for number, line in enumerate(lines.feed(), 1):
            lines.of_row.clear()
            cells = line.rstrip("\r\n").split(separator)
            if quote in line and any(len(cell) > 1 and cell[0] == quote == cell[-1] for cell in cells):
                self.unusual_rows.quoted += 1
            yield number, number, cells

    def _quoted(self, lines: "_Lines") -> Iterator[tuple[int, int, list[str] | BadRow]]:
        """Yield first line, last line and cells of each row.

        If the quotes of a row do not match, only its first line is a BadRow; the next lines are read again as rows.
        """
        reader, number = self._reader(lines), 1
        while True:
            lines.of_row.clear()
            try:
                cells: list[str] | BadRow = next(reader)
            except StopIteration:
                return
            except (csv.Error, _TooManyLines) as error:
                cells = BadRow(f"the quotes do not match ({error}). Double each quote inside a quoted field.")
            row_lines = lines.of_row
            if not isinstance(cells, BadRow) and len(row_lines) > 1 and self._looks_like_rows(row_lines):
                cells = BadRow(
                    f"a quote opens in this line and closes {_lines(len(row_lines) - 1)} below, but these lines look "
                    "like rows. Remove or double the quote; --quoting none reads quotes as text, --quoting csv joins "
                    "the lines."
                )
            if isinstance(cells, BadRow) and len(row_lines) > 1:
                lines.give_back()
                reader = self._reader(lines)
            used = 1 if isinstance(cells, BadRow) else len(row_lines)
            yield number, number + used - 1, cells
            number += used

    def _reader(self, lines: "_Lines") -> "Iterator[list[str]]":
        return csv.reader(lines.feed(), delimiter=self.separator, strict=True)

    def _looks_like_rows(self, row_lines: list[str]) -> bool:
        """Return whether the lines of one quoted row look like separate rows.

        They do if the first, the last and most of the others have as many separators as the header.
        """
        between = len(self.names) - 1
        if self._trusts_quotes or between == 0:
            return False
        alike = [line.count(self.separator) == between for line in row_lines]
        return alike[0] and alike[-1] and sum(alike[1:-1]) * 2 >= len(alike) - 2

    def _uses_quotes(self, lines: list[str]) -> bool:
        """Return whether quotes enclose cells: always in CSV; in TSV if all cells of the header are quoted."""
        if self._usual == ",":
            return True
        cells = lines[0].strip().split(self.separator) if lines else []
        return bool(cells) and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)

    def _header(self, lines: list[str]) -> list[str]:
        if not lines:
            return []
        if not self.quoted:
            return [name.strip() for name in lines[0].rstrip("\r\n").split(self.separator)]
        try:
            return [name.strip() for name in next(csv.reader(lines, delimiter=self.separator, strict=True))]
        except csv.Error as error:
            raise TableError(
                f"{self.path} line 1: the quotes do not match ({error}). Double each quote inside a quoted field."
            ) from error


class _TooManyLines(Exception):
    """A quoted row has more than MAX_RECORD_LINES lines."""


class _Lines:
    """Physical lines of a file. All lines of the current row except its first can be read again."""

    def __init__(self, path: Path, text: TextIO) -> None:
        self._path, self._read = path, partial(text.readline, MAX_LINE + 1)
        self._again: deque[str] = deque()
        self._number = 0  # of the last yielded line, from 1
        self.of_row: list[str] = []

    def feed(self) -> Iterator[str]:
        """Yield lines. Raises _TooManyLines, and TableError for a line that is too long."""
        again, row_lines, read = self._again, self.of_row, self._read
        while line := again.popleft() if again else read():
            row_lines.append(line)
            self._number += 1
            if len(line) > MAX_LINE:
                raise line_too_long(self._path, self._number)
            if len(row_lines) > MAX_RECORD_LINES:
                raise _TooManyLines(f"a quote stays open for more than {MAX_RECORD_LINES:,} lines")
            yield line

    def give_back(self) -> None:
        """Yield all lines of the current row except the first again."""
        self._again.extendleft(reversed(self.of_row[1:]))
        self._number -= len(self.of_row) - 1


def _sample(path: Path) -> list[str]:
    """Read the first lines, for the header and the separator."""
    with opened_text(path) as (text, _):
        first = text.readline(MAX_LINE + 1)
        if len(first) > MAX_LINE:
            raise line_too_long(path, 1)
        lines, length = [first], len(first)
        for line in islice(iter(partial(text.readline, SAMPLE_CHARACTERS), ""), SAMPLE_LINES):
            lines.append(line)
            length += len(line)
            if length > SAMPLE_CHARACTERS:
                break
    return [line for line in lines if line]


def _marked_separator(lines: list[str]) -> str | None:
    """Return the separator of a first line `sep=;`, as spreadsheets write it."""
    first = lines[0].strip("\r\n") if lines else ""
    return first[4] if len(first) == 5 and first.lower().startswith("sep=") else None


def _guess(lines: list[str], usual: str) -> str:
    """Return the usual separator if the header has it, else the one that gives the most cells."""
    if not lines:
        return usual
    widths = {one: _width(lines, one) for one in SEPARATORS}
    if usual in lines[0] and (widths[usual] or not any(widths.values())):
        return usual
    best = max(SEPARATORS, key=lambda one: (widths[one], lines[0].count(one)))
    return best if best in lines[0] else usual


def _width(lines: list[str], separator: str) -> int:
    """Return the number of cells per line; 0 if lines differ or have only one."""
    try:
        counts = {len(cells) for cells in csv.reader(lines, delimiter=separator) if cells}
    except csv.Error:
        return 0
    return counts.pop() if len(counts) == 1 and counts != {1} else 0


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def _name(separator: str) -> str:
    return NAMES.get(separator, repr(separator))
