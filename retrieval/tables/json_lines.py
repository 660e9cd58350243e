"""Read JSON Lines: one object per line."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from retrieval.errors import TableError
from retrieval.tables.opening import ReadingProgress, text_lines
from retrieval.tables.values import BadRow, PlacedRow, Record, preview, refuse_surrogates


def json_rows(path: Path, progress: ReadingProgress, used: Sequence[str] = ()) -> Iterator[PlacedRow]:
    """Yield each line's place and its object; BadRow for an invalid line, None for a blank line.

    A line with a duplicate key of `used` is a BadRow. A file with only `[]` is an empty table. Raises TableError for
    any other JSON array.
    """
    keys = [json.dumps(name, ensure_ascii=False) for name in used]
    rows = iter(text_lines(path, progress))
    for number, line in rows:
        if not line:
            yield f"{path.name} line {number}", None
            continue
        ahead = [(number, line)]
        if line.startswith("["):
            _refuse_array(path, line)
            while (following := next(rows, None)) is not None and not following[1]:
                ahead.append(following)
            if following is None and line == "[]":
                return
            ahead += [following] if following else []
        for place, text in chain(ahead, rows):
            where = f"{path.name} line {place}"
            try:
                record = json_record(text) if text else None
                for key in keys:
                    if text.count(key) > 1:
                        _refuse_duplicate_key(text, key)
                yield where, record
            except BadRow as bad:
                yield where, bad


def json_record(line: str) -> Record:
    """Parse the object of one line. Raises BadRow if it is not a JSON object."""
    try:
        value = _parsed(line)
    except json.JSONDecodeError as error:
        if not line.isascii():
            refuse_surrogates(line, "the line")
        raise BadRow(
            f"{preview(line)} is not JSON ({error.msg}, column {error.colno}). Write one JSON object per line."
        ) from error
    except RecursionError as error:
        raise BadRow("the JSON is nested too deeply. Write one flat JSON object per line.") from error
    if not isinstance(value, dict):
        raise BadRow(f'{preview(value)} is not a JSON object. Write one object per line, such as {{"query": …}}.')
    return value


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer with more digits than Python converts; harmless in an unused column
        return json.loads(line, parse_int=_integer)


def _refuse_duplicate_key(line: str, key: str) -> None:
    """Raise BadRow if the object has the key twice. Nested keys and values do not count."""
    pairs = json.loads(line, object_pairs_hook=list, parse_int=_integer)
    name = json.loads(key)
    if sum(one == name for one, _ in pairs) > 1:
        raise BadRow(f"the key {key} occurs twice. Remove one.")


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < 1_000 else Decimal(digits)


def _refuse_array(path: Path, line: str) -> None:
    """Raise TableError if the first line starts an array of objects, on one line or several."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if value is None or (value and isinstance(value[0], dict)):
        raise TableError(
            f"{path} contains a JSON array. Write one object per line, for example with `jq -c '.[]' {path.name}`."
        )
