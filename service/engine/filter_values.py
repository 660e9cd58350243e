"""List the attributes that a bundle's labels can be filtered by, with their most frequent values."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.search.attributes import python_types
from retrieval.search.filters import MAX_ATTRIBUTES
from service.engine.protocol import FilterAttribute

MAX_VALUES = 20  # of one attribute
MAX_VALUE_CHARS = 100  # longer values are left out, because they do not suit a list of choices
SAMPLE_LABELS = 1 << 18  # values that are frequent in an evenly spaced sample of this size are frequent in all labels


def list_attributes(table: pa.Table) -> list[FilterAttribute]:
    """Return the attributes that a filter may name, at most as many as one filter may have."""
    if table.num_rows > SAMPLE_LABELS:
        table = table.take(pa.array(np.linspace(0, table.num_rows - 1, SAMPLE_LABELS, dtype=np.int64)))
    names = [name for name in table.column_names if name not in ("id", "text")]
    attributes = (_attribute(name, table.column(name)) for name in names)
    return [attribute for attribute in attributes if attribute][:MAX_ATTRIBUTES]


def _attribute(name: str, column: pa.ChunkedArray) -> FilterAttribute | None:
    """Return the attribute of a column; None if its type cannot be filtered by."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not python_types(kind):
        return None
    counted = column.cast(kind).drop_null().value_counts()
    values, counts = counted.field("values"), counted.field("counts").to_numpy()
    # a stable sort keeps equally frequent values in the order of the table, so the result is the same every time
    best = values.take(pa.array(np.argsort(-counts, kind="stable")[:MAX_VALUES])).to_pylist()
    shown = [value for value in best if _is_presentable(value)]
    return FilterAttribute(name, shown, more=len(values) > len(shown))


def _is_presentable(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, str) or len(value) <= MAX_VALUE_CHARS
