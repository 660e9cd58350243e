"""Print text without control characters, and without errors for characters that the terminal cannot encode.

An escape sequence in a label could otherwise change the screen, and a bidirectional override could reverse a line.
"""

import json
import re
import sys
from typing import IO, Any

# C0 except tab and line feed, DEL and C1; bidirectional marks, overrides and isolates; line and paragraph separators.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb]")


def strip_controls(text: str) -> str:
    """Return `text` without control characters and bidirectional overrides; tabs and line feeds stay."""
    return UNSAFE.sub("", text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line without control characters; characters that the stream cannot encode become question marks."""
    stream = sys.stderr if err else sys.stdout
    print(_encodable(strip_controls(text), stream), file=stream)


def print_json(content: Any) -> None:
    """Print valid JSON. NaN and infinity become null, other types text, unsafe or unencodable characters escapes."""
    text = json.dumps(json_value(content), ensure_ascii=False, indent=2, allow_nan=False)
    text = UNSAFE.sub(lambda match: _escaped(match[0]), text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = "".join(letter if letter.isascii() else _escaped(letter) for letter in text)
    print(text)


def json_value(value: Any) -> Any:
    """Convert `value` to JSON types: keys become text, NaN and infinity null, bytes and other objects text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # NaN and infinity are not valid JSON
    if isinstance(value, dict):
        return {str(key): json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(one) for one in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def replace_unprintable() -> None:
    """Let standard output and error replace unencodable characters instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _encodable(text: str, stream: IO[str]) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _escaped(letter: str) -> str:
    return json.dumps(letter)[1:-1] if ord(letter) != 0x7F else "\\u007f"
