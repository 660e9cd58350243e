"""Parse and check the values of cells: texts, ids and lists of labels."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from retrieval.query_text import is_blank

MAX_PREVIEW = 60  # characters of a value in a message
MAX_COUNT = 2**40
# Beyond 2^53 a float cannot represent every integer.
_EXACT_FLOAT = 2.0**53
_LATIN_1 = "It may be Latin-1: convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`."


class BadRow(Exception):
    """An invalid row. The message names the column, the value and the fix."""


@dataclass(frozen=True)
class Missing:
    """The value of a column that a row of JSON does not have."""

    keys: tuple[str, ...]

    def refuse(self, name: str) -> None:
        """Raise BadRow."""
        raise BadRow(f"{name!r} is missing; the row has {', '.join(map(repr, self.keys)) or 'nothing'}. Add it.")


Record = dict[str, Any]  # values by column
PlacedRow = tuple[str, Record | BadRow | None]  # the place, such as `clicks.csv line 7`, and the row; None: blank line


def parse_text(value: Any, name: str, limit: int) -> str:
    """Return the value as text with single spaces.

    Raises BadRow if it is not text, longer than `limit` characters, or has no visible character.
    """
    if not isinstance(value, str):
        raise BadRow(f"{name} is {preview(value)}, not text. Write text or remove the row.")
    if len(value) > limit:
        raise BadRow(
            f"{name} has {len(value):,} characters ({preview(value)}), more than {limit:,}. "
            "Shorten it, or raise --max-characters."
        )
    text = " ".join(value.split())
    if not text.isascii():
        refuse_surrogates(text, name)
    if is_blank(text):
        raise BadRow(f"{name} is {preview(value)}, which is empty. Write text or remove the row.")
    return text


def parse_id(value: Any, name: str, limit: int) -> str:
    """Return an id as text, from text or an integer; 7, 7.0 and "7" are the same id, "007" is another.

    Raises BadRow for a boolean, a fraction, and a float too large to be exact.
    """
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return parse_text(value, name, limit)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value.is_integer() and abs(value) <= _EXACT_FLOAT:
            return str(int(value))
        if value - value == 0:
            raise BadRow(f"{name} is {preview(value)}, which is not an exact integer. Write ids as integers or text.")
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return parse_text(f"{value:f}".partition(".")[0], name, limit)
    return parse_text(value, name, limit)


def parse_labels(value: Any, name: str, parse: Callable[[Any, str], str]) -> list[str]:
    """Return a list of labels, each parsed by `parse`. Raises BadRow if the value is not a list."""
    if not isinstance(value, list):
        raise BadRow(f"{name} is {preview(value)}, not a list of labels. Write a list or remove the row.")
    return [parse(item, f"{name}[{position}]") for position, item in enumerate(value)]


def parse_list_cell(value: Any) -> Any:
    """Return the list of a cell with a JSON list, such as `["a", "b"]`; other values unchanged."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return items if isinstance(items, list) else value
    return value


def parse_count(value: Any, name: str) -> int:
    """Return an integer of at least 0, from a number or digits. Raises BadRow for any other value."""
    number = value.strip() if isinstance(value, str) else value
    digits = number.removesuffix(".0") if isinstance(number, str) else ""  # as pandas writes them in CSV
    if digits.isascii() and digits.isdigit() and len(digits) < 20:
        number = int(digits)
    if isinstance(number, float) and number.is_integer():  # pandas writes integer columns with nulls as floats
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_COUNT:
        raise BadRow(f"{name} is {preview(value)}, not a count. Write an integer of at least 0.")
    return number


def parse_number(value: Any, name: str) -> float:
    """Return a finite number, from a number or text. Raises BadRow for any other value."""
    try:
        number = float(value) if isinstance(value, str | int | float | Decimal) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise BadRow(f"{name} is {preview(value)}, not a number. Write a finite number.")
    return number


def parse_day(value: Any, name: str) -> date:
    """Return a date, from a date or a time, or text such as 2026-09-01, 20260901 and 2026-09-01T12:00:00Z.

    The day of a time is that of its time zone. Raises BadRow for any other value.
    """
    if isinstance(value, date):
        return value.date() if isinstance(value, datetime) else value
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        raise BadRow(f"{name} is {preview(value)}, not a date. Write it as 2026-09-01.") from None


def checked_attribute(value: Any, name: str) -> Any:
    """Return a value as it is. Raises BadRow if it is not UTF-8, or an integer of more than 64 bits."""
    if isinstance(value, str):
        if not value.isascii():
            refuse_surrogates(value, name)
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            checked_attribute(one, name)
    elif value is not None and not isinstance(value, float) and not -(2**63) <= value < 2**64:
        raise BadRow(f"{name} is {preview(value)}, which does not fit in 64 bits. Write it as text.")
    return value


def refuse_surrogates(text: str, name: str) -> None:
    """Raise BadRow if `text` has a byte that is not UTF-8, or half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # `surrogateescape` decodes a byte that is not UTF-8 to this range
            raise BadRow(f"{name} contains the byte 0x{code - 0xDC00:02x}, which is not UTF-8. {_LATIN_1}") from error
        raise BadRow(
            f"{name} contains half a surrogate pair, \\u{code:04x} ({preview(text)}). Write the complete character."
        ) from error


def preview(value: Any) -> str:
    """Return a short form of a value for a message, as JSON if possible."""
    try:
        text = json.dumps(value[: MAX_PREVIEW + 1] if isinstance(value, str) else value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = _repr(value)
    text = text if len(text) <= MAX_PREVIEW else text[:MAX_PREVIEW] + "…"
    return re.sub("[\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _repr(value: Any) -> str:
    try:
        return str(value) if isinstance(value, Decimal) else repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python prints
        return f"a value of type {type(value).__name__}"
