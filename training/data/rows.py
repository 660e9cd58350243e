"""What a source's row may hold, and what becomes of the rows that hold something else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from retrieval.errors import DatasetError

LISTED = 20
SHOWN_CHARACTERS = 60
SPLIT_CODES = {"train": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}


class BadRow(Exception):
    """One row cannot be used: the message tells what is wrong, with its value, and the way out."""


@dataclass
class Problems:
    """The bad rows met so far. Without `keep` only the first few are kept to be shown; all are counted."""

    keep: bool
    total: int = 0
    sentences: list[str] = field(default_factory=list)

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Note a BadRow raised inside as the sentence `where: what. Way out.` and go on."""
        try:
            yield
        except BadRow as bad:
            self.note(where, bad)

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


def text_of(value: Any, name: str, limit: int) -> str:
    """The value as text with runs of white space made one space; BadRow when it is no text, empty or absurdly long."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {shown(value)}, not text. Give it text or remove the row.")
    if len(value) > limit:
        raise BadRow(
            f"{name} has {len(value):,} characters ({shown(value)}), more than {limit:,}. "
            "Shorten it, or raise --max-characters."
        )
    text = " ".join(value.split())
    if not text:
        raise BadRow(f"{name} is {shown(value)}, which is empty. Give it text or remove the row.")
    if not text.isascii():
        _refuse_surrogates(text, name)
    return text


def _refuse_surrogates(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how `surrogateescape` carries a byte that is not UTF-8
            raise not_utf8(code - 0xDC00, name) from error
        raise BadRow(
            f"{name} holds half a surrogate pair, \\u{code:04x} ({shown(text)}). Write the whole character."
        ) from error


def not_utf8(byte: int, name: str) -> BadRow:
    """The BadRow for a byte that no UTF-8 text can hold."""
    return BadRow(f"{name} holds the byte 0x{byte:02x}, which is not UTF-8. Convert the file, for example with iconv.")


def split_code(value: Any) -> int:
    """0 train, 1 validation, 2 test; BadRow for any other value."""
    code = SPLIT_CODES.get(value.strip().lower()) if isinstance(value, str) else None
    if code is None:
        raise BadRow(f"split is {shown(value)}. Make it train, validation or test.")
    return code


def count_of(value: Any, name: str) -> int:
    """A whole number of at least 0, given as a number or as digits; BadRow for anything else."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isascii() and text.isdigit():
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or not 0 <= text < 2**40:
        raise BadRow(f"{name} is {shown(value)}, not a count. Make it a whole number of at least 0.")
    return text


def shown(value: Any) -> str:
    """A value as it may stand in a sentence: JSON where it can be, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return text.encode("utf-8", "backslashreplace").decode()
