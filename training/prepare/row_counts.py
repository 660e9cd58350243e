"""Count the rows of an input by what happened to them, and collect messages about bad rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from retrieval.errors import DatasetError
from retrieval.tables.values import BadRow, shown

LISTED = 20
SPLIT_CODES = {"train": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}

Record = dict[str, Any]


@dataclass
class Problems:
    """The bad rows met so far. Without `keep` only the first few are kept to be shown; all are counted."""

    keep: bool
    total: int = 0
    sentences: list[str] = field(default_factory=list)

    def note(self, where: str, bad: BadRow) -> None:
        """Count a bad row and keep its sentence."""
        self.total += 1
        if self.keep or len(self.sentences) < LISTED:
            self.sentences.append(f"{where}: {bad}")

    def stop_if_any(self, source: str) -> None:
        """DatasetError listing the first bad rows, unless they are to be skipped."""
        if self.keep or not self.total:
            return
        rows = "1 bad row" if self.total == 1 else f"{self.total:,} bad rows"
        listed = "" if self.total <= LISTED else f" The first {LISTED}:"
        raise DatasetError(
            f"{source} has {rows}, so nothing was written. Fix what is named here, or leave such rows out with "
            f"--skip-bad-rows.{listed}\n  " + "\n  ".join(self.sentences[:LISTED])
        )


@dataclass
class InputRows:
    """The number of rows of one input that were read, and that were skipped, by reason."""

    problems: Problems
    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def filled(self, rows: Iterable[tuple[str, Record | BadRow | None]]) -> Iterator[tuple[str, Record | BadRow]]:
        """Count all rows and yield those that are not blank."""
        for where, record in rows:
            self.read += 1
            if record is None:
                self.skipped["blank_line"] += 1
            else:
                yield where, record

    def attempt(self, where: str, record: Record | BadRow, use: Callable[[Record], object]) -> None:
        """Call `use` with a row. A BadRow, raised by it or passed as the row, is counted and noted."""
        try:
            if isinstance(record, BadRow):
                raise record
            use(record)
        except BadRow as bad:
            self.bad(where, bad)

    def bad(self, where: str, bad: BadRow) -> None:
        """Count and note a bad row."""
        self.skipped["bad_row"] += 1
        self.problems.note(where, bad)


def split_code(value: Any) -> int:
    """0 train, 1 validation, 2 test; BadRow for any other value."""
    code = SPLIT_CODES.get(value.strip().lower()) if isinstance(value, str) else None
    if code is None:
        raise BadRow(f"split is {shown(value)}. Make it train, validation or test.")
    return code


def count_of(value: Any, name: str) -> int:
    """A whole number of at least 0, given as a number or as digits; BadRow for anything else."""
    text = value.strip() if isinstance(value, str) else value
    digits = text.removesuffix(".0") if isinstance(text, str) else ""  # as pandas writes them in CSV
    if digits.isascii() and digits.isdigit() and len(digits) < 20:
        text = int(digits)
    if isinstance(text, float) and text.is_integer():  # pandas writes integer columns with gaps as floats
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or not 0 <= text < 2**40:
        raise BadRow(f"{name} is {shown(value)}, not a count. Make it a whole number of at least 0.")
    return text
