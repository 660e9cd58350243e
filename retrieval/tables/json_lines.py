"""JSON Lines: one object a line."""

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from retrieval.errors import TableError
from retrieval.tables.opening import Meter, text_lines
from retrieval.tables.values import BadRow, refuse_surrogates, shown

Record = dict[str, Any]


def json_rows(path: Path, meter: Meter) -> Iterator[tuple[str, Record | BadRow | None]]:
    """Yield each line's place and its object; BadRow for a line that is none, None for a blank line.

    A file that holds `[]` is an empty list. Raises TableError for any other JSON array.
    """
    rows = iter(text_lines(path, meter))
    for number, line in rows:
        if not line:
            yield f"{path.name} line {number}", None
            continue
        if line.startswith("[") and _is_array(path, line, rows):
            return
        for place, text in chain([(number, line)], rows):
            where = f"{path.name} line {place}"
            try:
                yield where, json_record(text) if text else None
            except BadRow as bad:
                yield where, bad


def json_record(line: str) -> Record:
    """Return the object of one line; BadRow when it is no JSON object."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        if not line.isascii():
            refuse_surrogates(line, "the line")
        raise BadRow(
            f"{shown(line)} is not JSON ({error.msg}, column {error.colno}). Write one JSON object a line."
        ) from error
    except RecursionError as error:
        raise BadRow("the JSON is nested too deeply. Write one flat JSON object a line.") from error
    except ValueError:  # an integer of more digits than Python converts; in a column that is not used it does no harm
        value = json.loads(line, parse_int=_integer)
    if not isinstance(value, dict):
        raise BadRow(f'{shown(value)} is no JSON object. Write one object a line, such as {{"query": …}}.')
    return value


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < 1_000 else Decimal(digits)


def _is_array(path: Path, line: str, rest: Iterator[tuple[int, str]]) -> bool:
    """Tell whether the file is `[]`; TableError when it is another array, spread over lines or in one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if value == [] and not any(text for _, text in rest):
        return True
    if value is None or (isinstance(value, list) and value and isinstance(value[0], dict)):
        raise TableError(
            f"{path} holds a JSON array. Write one object a line, for example with `jq -c '.[]' {path.name}`."
        )
    return False
