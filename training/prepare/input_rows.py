"""Count the rows of an input, collect messages about bad rows, and parse splits and counts."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from retrieval.errors import DatasetError
from retrieval.tables.values import BadRow, PlacedRow, Record, preview

MAX_LISTED = 20  # messages that are printed
SPLIT_CODES = {"train": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}


@dataclass
class BadRowLog:
    """Messages about bad rows, which are all counted. With `skip` all messages are stored, else the first few."""

    skip: bool
    total: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, where: str, bad: BadRow) -> None:
        """Count a bad row and store its message."""
        self.total += 1
        if self.skip or len(self.messages) < MAX_LISTED:
            self.messages.append(f"{where}: {bad}")

    def raise_if_any(self, source: str) -> None:
        """Raise DatasetError with the first messages, unless bad rows are skipped."""
        if self.skip or not self.total:
            return
        rows = "1 bad row" if self.total == 1 else f"{self.total:,} bad rows"
        first = "" if self.total <= MAX_LISTED else f" The first {MAX_LISTED}:"
        raise DatasetError(
            f"{source} has {rows}; nothing was written. "
            f"Correct the source, or add --skip-bad-rows to leave such rows out.{first}\n  "
            + "\n  ".join(self.messages[:MAX_LISTED])
        )


@dataclass
class InputRows:
    """Counts the rows of one input: rows read, and rows skipped by reason."""

    bad_rows: BadRowLog
    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def filled(self, rows: Iterable[PlacedRow]) -> Iterator[tuple[str, Record | BadRow]]:
        """Count all rows and yield those that are not blank."""
        for where, record in rows:
            self.read += 1
            if record is None:
                self.skipped["blank_line"] += 1
            else:
                yield where, record

    def attempt(self, where: str, record: Record | BadRow, use: Callable[[Record], object]) -> None:
        """Call `use` with a row. A BadRow, raised by it or passed as the row, is counted and logged."""
        try:
            if isinstance(record, BadRow):
                raise record
            use(record)
        except BadRow as bad:
            self.skipped["bad_row"] += 1
            self.bad_rows.add(where, bad)


def parse_split(value: Any) -> int:
    """Return 0 for train, 1 for validation, 2 for test. Raises BadRow for any other value."""
    code = SPLIT_CODES.get(value.strip().lower()) if isinstance(value, str) else None
    if code is None:
        raise BadRow(f"split is {preview(value)}. Write train, validation or test.")
    return code


def parse_count(value: Any, name: str) -> int:
    """Return an integer of at least 0, from a number or digits. Raises BadRow for any other value."""
    number = value.strip() if isinstance(value, str) else value
    digits = number.removesuffix(".0") if isinstance(number, str) else ""  # as pandas writes them in CSV
    if digits.isascii() and digits.isdigit() and len(digits) < 20:
        number = int(digits)
    if isinstance(number, float) and number.is_integer():  # pandas writes integer columns with nulls as floats
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**40:
        raise BadRow(f"{name} is {preview(value)}, not a count. Write an integer of at least 0.")
    return number
