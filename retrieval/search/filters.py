"""Filters on attributes: the allowed values of each attribute.

`{"market": ["US", "CA"], "language": ["en"]}` allows labels whose market is US or CA and whose language is English. If
an attribute is a list, one of its values is enough.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.errors import BadInput

Value = str | int | float | bool
Filter = Mapping[str, Sequence[Value]]
FilterKey = tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]  # per attribute: its name, types and values

MAX_ATTRIBUTES, MAX_VALUES = 16, 1_000  # per filter


def filter_key(attribute_filter: Filter) -> FilterKey:
    """Return a key that is equal for equal filters, whatever their order. Raises BadInput for an invalid filter."""
    if not isinstance(attribute_filter, Mapping):
        raise BadInput(f"filter is {type(attribute_filter).__name__}; give attributes, each with a list of values")
    if len(attribute_filter) > MAX_ATTRIBUTES:
        raise BadInput(f"filter names {len(attribute_filter)} attributes; the maximum is {MAX_ATTRIBUTES}")
    return tuple((name, _typed_values(name, values)) for name, values in sorted(attribute_filter.items()))


def _typed_values(name: str, values: Any) -> tuple[tuple[str, Value], ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise BadInput(f"filter: the values of {name!r} must be a list, such as [{values!r}]")
    if not 0 < len(values) <= MAX_VALUES:
        raise BadInput(f"filter: {name!r} has {len(values)} values; give from 1 to {MAX_VALUES}")
    for value in values:
        if not isinstance(value, str | int | float | bool):
            raise BadInput(f"filter: {name!r} has the value {value!r}; give text, a number, true or false")
    # 1, 1.0 and True are equal in Python and not in a filter.
    return tuple(sorted({(type(value).__name__, value) for value in values}))
