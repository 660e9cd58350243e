"""Check the values of cells: texts, ids and lists of labels."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from retrieval.query_text import is_blank

SHOWN_CHARACTERS = 60
# Beyond 2^53 a float cannot represent every whole number.
_EXACT_FLOAT = 2.0**53
_LATIN_1 = "It may be Latin-1: convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`."


class BadRow(Exception):
    """An invalid row. The message names the column, the value and the fix."""


def text_of(value: Any, name: str, limit: int) -> str:
    """Return the value as text with single spaces.

    Raises BadRow if it is not text, longer than `limit` characters, or has no visible character.
    """
    if not isinstance(value, str):
        raise BadRow(f"{name} is {shown(value)}, not text. Give it text or remove the row.")
    if len(value) > limit:
        raise BadRow(
            f"{name} has {len(value):,} characters ({shown(value)}), more than {limit:,}. "
            "Shorten it, or raise --max-characters."
        )
    text = " ".join(value.split())
    if not text.isascii():
        refuse_surrogates(text, name)
    if is_blank(text):
        raise BadRow(f"{name} is {shown(value)}, which is empty. Give it text or remove the row.")
    return text


def id_of(value: Any, name: str, limit: int) -> str:
    """Return an id as text, from text or a whole number; 7, 7.0 and "7" are the same id, "007" is another.

    Raises BadRow for a boolean, a fraction, and a float too large to be exact.
    """
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return text_of(value, name, limit)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value.is_integer() and abs(value) <= _EXACT_FLOAT:
            return str(int(value))
        if value - value == 0:
            raise BadRow(f"{name} is {shown(value)}, which is no exact whole number. Write ids as integers or as text.")
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return text_of(f"{value:f}".partition(".")[0], name, limit)
    return text_of(value, name, limit)


def labels_of(value: Any, name: str, of: Callable[[Any, str], str]) -> list[str]:
    """Return a list of labels, each converted by `of`. Raises BadRow if the value is not a list."""
    if not isinstance(value, list):
        raise BadRow(f"{name} is {shown(value)}, not a list of labels. Give it a list or remove the row.")
    return [of(item, f"{name}[{position}]") for position, item in enumerate(value)]


def written_list(value: Any) -> Any:
    """Return the list that a text cell holds as JSON, `["a", "b"]`; other values unchanged."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, list) else value
    return value


def refuse_surrogates(text: str, name: str) -> None:
    """Raise BadRow if `text` has a byte that is not UTF-8, or half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how `surrogateescape` carries a byte that is not UTF-8
            raise BadRow(f"{name} holds the byte 0x{code - 0xDC00:02x}, which is not UTF-8. {_LATIN_1}") from error
        raise BadRow(
            f"{name} holds half a surrogate pair, \\u{code:04x} ({shown(text)}). Write the whole character."
        ) from error


def shown(value: Any) -> str:
    """Return a value for a message: as JSON if possible, shortened."""
    try:
        text = json.dumps(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str) else value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = _repr(value)
    text = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _repr(value: Any) -> str:
    try:
        return str(value) if isinstance(value, Decimal) else repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python prints
        return f"a value of type {type(value).__name__}"
