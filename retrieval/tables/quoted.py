"""Read rows of CSV whose lines contain quotes. A quote that does not match invalidates only its line."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from retrieval.tables.lines import Block

MAX_ROW_LINES = 1_000  # a quote that stays open for longer is not one that encloses a cell


@dataclass(frozen=True)
class QuotedRow:
    """A row that begins in `line` of a block and has `lines` lines: its cells, or a message."""

    line: int
    lines: int
    cells: list[str] | str


class QuotedRows:
    """Reads rows by the rules of CSV."""

    def __init__(self, separator: str, n_columns: int, trusts_quotes: bool) -> None:
        """trusts_quotes: a row may have lines that look like rows."""
        self._separator, self._n_columns, self._trusts_quotes = separator, n_columns, trusts_quotes

    def read(self, block: Block, line: int) -> QuotedRow | None:
        """Return the row that begins in a line of a block; None if it continues after the block."""
        lines = _Lines(block, line)
        try:
            cells = next(csv.reader(lines, delimiter=self._separator, strict=True))
        except (csv.Error, _TooManyLines) as error:
            if lines.ended and not block.is_last:
                return None
            return QuotedRow(line, 1, f"the quotes do not match ({error}). Double each quote inside a quoted field.")
        if len(lines.read) > 1 and self._look_like_rows(lines.read):
            below = "1 line" if len(lines.read) == 2 else f"{len(lines.read) - 1} lines"
            return QuotedRow(
                line, 1, f"a quote opens in this line and closes {below} below, but these lines look "
                "like rows. Remove or double the quote; --quoting none reads quotes as text, --quoting csv joins "
                "the lines.",
            )  # fmt: skip
        return QuotedRow(line, len(lines.read), cells)

    def _look_like_rows(self, lines: list[str]) -> bool:
        """Return whether the lines of one row look like separate rows.

        They do if the first, the last and most of the others have as many separators as the header.
        """
        between = self._n_columns - 1
        if self._trusts_quotes or between == 0:
            return False
        alike = [line.count(self._separator) == between for line in lines]
        return alike[0] and alike[-1] and sum(alike[1:-1]) * 2 >= len(alike) - 2


class _TooManyLines(Exception):
    """A quoted row has more than MAX_ROW_LINES lines."""


class _Lines:
    """Yields lines of a block, and collects them."""

    def __init__(self, block: Block, line: int) -> None:
        self._block, self._line = block, line
        self.read: list[str] = []
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        for line in range(self._line, len(self._block)):
            if len(self.read) == MAX_ROW_LINES:
                raise _TooManyLines(f"a quote stays open for more than {MAX_ROW_LINES:,} lines")
            self.read.append(self._block.text_of(line))
            yield self.read[-1]
        self.ended = True
