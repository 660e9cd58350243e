"""Compile filters to the labels that they allow.

Suffixes: L labels, V values of all labels in one attribute, U distinct values, R allowed labels.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.errors import BadInput
from retrieval.search.filters import Filter, FilterKey, Value, filter_key

CACHE_BYTES = 1 << 26  # of compiled filters
BYTES_PER_LABEL = 9  # per compiled filter: its mask and the allowed rows
BYTES_PER_LABEL_WITH_NODES = 32  # with the labels of each node


@dataclass(frozen=True, eq=False)
class Allowed:
    """The labels that a filter allows, one bool per label."""

    mask_L: NDArray[np.bool_]

    @cached_property
    def rows_R(self) -> NDArray[np.int64]:
        """Return their rows, ascending."""
        return np.flatnonzero(self.mask_L)

    @cached_property
    def count(self) -> int:
        """Return their number."""
        return int(np.count_nonzero(self.mask_L))


class Attributes:
    """The attributes of a label table, which compile filters; safe to use from several threads.

    An attribute's values are numbered at its first use. Compiled filters are cached.
    """

    def __init__(self, table: pa.Table, bytes_per_label: int = BYTES_PER_LABEL, cache_bytes: int = CACHE_BYTES) -> None:
        """`bytes_per_label`: memory of a compiled filter per label, including what `Candidates` caches for it."""
        self._table = table
        self._max_compiled = max(1, cache_bytes // (bytes_per_label * max(table.num_rows, 1)))
        self._attributes: dict[str, _Attribute] = {}
        self._compiled: OrderedDict[FilterKey, Allowed] = OrderedDict()
        self._not_paused_L: NDArray[np.bool_] | None = None  # None while no label is paused
        self._lock = Lock()

    def pause(self, ids: Iterable[str]) -> list[str]:
        """Let no filter allow these labels; replaces the ids of an earlier call. Returns the unknown ids."""
        unique, column = list(dict.fromkeys(ids)), self._table.column("id")
        paused_L = pc.is_in(column, value_set=pa.array(unique, column.type))
        known = set(column.filter(paused_L).to_pylist())
        with self._lock:
            self._not_paused_L = ~paused_L.to_numpy(zero_copy_only=False) if known else None
            self._compiled.clear()
        return [one for one in unique if one not in known]

    @property
    def paused(self) -> bool:
        """Return whether labels are paused."""
        return self._not_paused_L is not None

    def allowed(self, attribute_filter: Filter) -> Allowed:
        """Return the labels that a filter allows, without paused ones. Raises BadInput for an invalid filter."""
        key = filter_key(attribute_filter)
        with self._lock:
            if (cached := self._compiled.get(key)) is not None:
                self._compiled.move_to_end(key)
                return cached
            mask_L = (
                np.ones(self._table.num_rows, np.bool_) if self._not_paused_L is None else self._not_paused_L.copy()
            )
            for name, values in key:
                mask_L &= self._attribute(name).labels_with([value for _, value in values])
            allowed = self._compiled[key] = Allowed(mask_L)
            while len(self._compiled) > self._max_compiled:
                self._compiled.popitem(last=False)
            return allowed

    def parse_filter(self, texts: Sequence[str]) -> Filter:
        """Parse `["market=US,CA", "year=2025"]`; values get the types of their attributes. Raises BadInput."""
        attribute_filter: dict[str, list[Value]] = {}
        for text in texts:
            name, equals, values = text.partition("=")
            if not equals:
                raise BadInput(f"filter {text!r} has no values; write NAME=VALUE,VALUE")
            with self._lock:
                attribute = self._attribute(name)
            attribute_filter.setdefault(name, []).extend(map(attribute.parse, values.split(",")))
        return attribute_filter

    def _attribute(self, name: str) -> "_Attribute":
        if name not in self._attributes:
            names = [column for column in self._table.column_names if column not in ("id", "text")]
            if name not in names:
                has = f"It has: {', '.join(names)}" if names else "It has none"
                raise BadInput(f"filter: the bundle's labels have no attribute {name!r}. {has}.")
            self._attributes[name] = _Attribute(name, self._table.column(name))
        return self._attributes[name]


class _Attribute:
    """One column of the label table with numbered values."""

    def __init__(self, name: str, column: pa.ChunkedArray) -> None:
        self.name, self.size = name, len(column)
        self.label_V: NDArray[np.int64] | None = None  # the label of each value, if labels have lists
        column = column.combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            self.label_V = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        self.type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        self.python_types = python_types(self.type)
        if not self.python_types:
            raise BadInput(f"filter: the attribute {name!r} is {self.type}, which filters do not support.")
        numbered = column.cast(self.type).dictionary_encode()
        self.code_V = numbered.indices.fill_null(len(numbered.dictionary)).to_numpy(zero_copy_only=False)
        self.codes = {value: code for code, value in enumerate(numbered.dictionary.to_pylist())}

    def labels_with(self, values: Sequence[Value]) -> NDArray[np.bool_]:
        """Return which labels have one of these values [L]."""
        for value in values:
            if type(value) not in self.python_types:
                raise BadInput(f"filter: the attribute {self.name!r} is {self.type}; {value!r} is not.")
        selected_U = np.zeros(len(self.codes) + 1, np.bool_)  # the last code is that of missing values
        selected_U[[self.codes[value] for value in values if value in self.codes]] = True
        selected_V: NDArray[np.bool_] = selected_U[self.code_V]
        if self.label_V is None:
            return selected_V
        selected_L = np.zeros(self.size, np.bool_)
        selected_L[self.label_V[selected_V]] = True
        return selected_L

    def parse(self, text: str) -> Value:
        """Parse a value of this attribute."""
        try:
            value = text if str in self.python_types else json.loads(text)
        except json.JSONDecodeError:
            value = text
        if type(value) not in self.python_types:
            raise BadInput(f"filter: the attribute {self.name!r} is {self.type}; {text!r} is not.")
        return cast(Value, value)


def python_types(arrow_type: pa.DataType) -> tuple[type, ...]:
    """Return the Python types of an Arrow type's values in a filter; empty if filters do not support it."""
    if pa.types.is_boolean(arrow_type):
        return (bool,)
    if pa.types.is_integer(arrow_type):
        return (int,)
    if pa.types.is_floating(arrow_type):
        return (float, int)
    return (str,) if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) else ()
