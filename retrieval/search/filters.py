"""What a filter on attributes is: which values of which attributes a label may have.

`{"market": ["US", "CA"], "language": ["en"]}` allows the labels whose market is one of the two and whose language is
English. Of an attribute that holds a list, one of its values is enough.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.errors import BadInput

Value = str | int | float | bool
Filter = Mapping[str, Sequence[Value]]
Key = tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]  # of each attribute its values, and their types

NAMES, VALUES = 16, 1_000  # in one filter; more is no question any more


def key_of(wanted: Filter) -> Key:
    """The same for filters that allow the same, whatever the order they are written in. Raises BadInput."""
    if not isinstance(wanted, Mapping):
        raise BadInput(f"filter is {type(wanted).__name__}; give attributes, each with a list of values")
    if len(wanted) > NAMES:
        raise BadInput(f"filter names {len(wanted)} attributes; at most {NAMES} are possible")
    return tuple((name, _values(name, values)) for name, values in sorted(wanted.items()))


def _values(name: str, values: Any) -> tuple[tuple[str, Value], ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise BadInput(f"filter: the values of {name!r} must be a list, such as [{values!r}]")
    if not 0 < len(values) <= VALUES:
        raise BadInput(f"filter: {len(values)} values of {name!r}; give from 1 to {VALUES}")
    for value in values:
        if not isinstance(value, str | int | float | bool):
            raise BadInput(f"filter: {value!r} of {name!r} is no text, number or truth value")
    # 1, 1.0 and True are equal in Python and not in a filter.
    return tuple(sorted({(type(value).__name__, value) for value in values}))
