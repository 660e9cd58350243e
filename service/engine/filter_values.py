"""What a bundle's labels can be filtered by: each attribute, and its most frequent values."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.search.attributes import python_types
from retrieval.search.filters import MAX_ATTRIBUTES

SHOWN = 20  # values of one attribute
SHOWN_CHARS = 100  # of one value; a longer one is nothing to choose from a list
LOOKED_AT = 1 << 18  # labels; values that are frequent among so many, evenly spread, are frequent among all


def facets(table: pa.Table) -> list[dict[str, Any]]:
    """Attributes that a filter may name, at most as many as one filter holds.

    Each has its `name`, its most frequent `values`, and whether there are `more` of them.
    """
    if table.num_rows > LOOKED_AT:
        table = table.take(pa.array(np.linspace(0, table.num_rows - 1, LOOKED_AT, dtype=np.int64)))
    names = [name for name in table.column_names if name not in ("id", "text")]
    found = (_facet(name, table.column(name)) for name in names)
    return [one for one in found if one][:MAX_ATTRIBUTES]


def _facet(name: str, column: pa.ChunkedArray) -> dict[str, Any] | None:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not python_types(kind):
        return None
    counted = column.cast(kind).drop_null().value_counts()
    values, counts = counted.field("values"), counted.field("counts").to_numpy()
    # among equals in the order of the table, so that the same bundle always says the same
    best = values.take(pa.array(np.argsort(-counts, kind="stable")[:SHOWN])).to_pylist()
    shown = [value for value in best if _can_be_shown(value)]
    return {"name": name, "values": shown, "more": len(values) > len(shown)}


def _can_be_shown(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, str) or len(value) <= SHOWN_CHARS
