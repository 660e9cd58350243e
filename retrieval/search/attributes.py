"""The labels that a filter allows: attributes compiled to one bit a label.

Suffixes: L labels, V values of all labels in one attribute, U distinct ones, R allowed labels.
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
from retrieval.search.filters import Filter, Key, Value, key_of

REMEMBERED_BYTES = 1 << 26  # of compiled filters
BYTES_PER_LABEL = 9  # per compiled filter: its mask and the allowed rows
BYTES_WITH_NODES = 32  # with the labels of each node


@dataclass(frozen=True, eq=False)
class Allowed:
    """The labels that a filter allows, one bool a label."""

    mask_L: NDArray[np.bool_]

    @cached_property
    def rows_R(self) -> NDArray[np.int64]:
        """Their rows, rising."""
        return np.flatnonzero(self.mask_L)

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.mask_L))


class Attributes:
    """Compiles filters over a label table; safe to use from several threads.

    An attribute's values are numbered when it is first asked for; compiled filters are remembered within a bound.
    """

    def __init__(self, table: pa.Table, bytes_per_label: int = BYTES_PER_LABEL) -> None:
        """`bytes_per_label`: memory of a compiled filter per label, including what `Candidates` caches for it."""
        self._table = table
        self._most_compiled = max(1, REMEMBERED_BYTES // (bytes_per_label * max(table.num_rows, 1)))
        self._attributes: dict[str, _Attribute] = {}
        self._compiled: OrderedDict[Key, Allowed] = OrderedDict()
        self._shown_L: NDArray[np.bool_] | None = None  # None while nothing is paused
        self._lock = Lock()

    def pause(self, ids: Iterable[str]) -> list[str]:
        """From now on no filter allows these labels, and those of an earlier call again; returns the ids of none."""
        wanted, column = list(dict.fromkeys(ids)), self._table.column("id")
        paused_L = pc.is_in(column, value_set=pa.array(wanted, column.type))
        found = set(column.filter(paused_L).to_pylist())
        with self._lock:
            self._shown_L = ~paused_L.to_numpy(zero_copy_only=False) if found else None
            self._compiled.clear()
        return [one for one in wanted if one not in found]

    @property
    def paused(self) -> bool:
        """Whether there are labels that no filter allows."""
        return self._shown_L is not None

    def allowed(self, wanted: Filter) -> Allowed:
        """The labels that `wanted` allows; raises BadInput for what no label can be asked."""
        key = key_of(wanted)
        with self._lock:
            if (known := self._compiled.get(key)) is not None:
                self._compiled.move_to_end(key)
                return known
            mask_L = np.ones(self._table.num_rows, np.bool_) if self._shown_L is None else self._shown_L.copy()
            for name, values in key:
                mask_L &= self._attribute(name).having([value for _, value in values])
            found = self._compiled[key] = Allowed(mask_L)
            while len(self._compiled) > self._most_compiled:
                self._compiled.popitem(last=False)
            return found

    def filter_of(self, texts: Sequence[str]) -> Filter:
        """`["market=US,CA", "year=2025"]` as a filter, its values of the attributes' types. Raises BadInput."""
        wanted: dict[str, list[Value]] = {}
        for text in texts:
            name, equals, values = text.partition("=")
            if not equals:
                raise BadInput(f"filter {text!r} names no values; write NAME=VALUE,VALUE")
            with self._lock:
                attribute = self._attribute(name)
            wanted.setdefault(name, []).extend(map(attribute.read, values.split(",")))
        return wanted

    def _attribute(self, name: str) -> "_Attribute":
        if name not in self._attributes:
            known = [column for column in self._table.column_names if column not in ("id", "text")]
            if name not in known:
                has = f"It has: {', '.join(known)}" if known else "It has none"
                raise BadInput(f"filter: the bundle's labels have no attribute {name!r}. {has}.")
            self._attributes[name] = _Attribute(name, self._table.column(name))
        return self._attributes[name]


class _Attribute:
    """One column of the label table, its values numbered."""

    def __init__(self, name: str, column: pa.ChunkedArray) -> None:
        self.name, self.size = name, len(column)
        self.label_V: NDArray[np.int64] | None = None  # the label of each value, where labels hold lists
        column = column.combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            self.label_V = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        self.type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        self.kinds = kinds(self.type)
        if not self.kinds:
            raise BadInput(f"filter: the attribute {name!r} holds {self.type}, which cannot be filtered by.")
        numbered = column.cast(self.type).dictionary_encode()
        self.code_V = numbered.indices.fill_null(len(numbered.dictionary)).to_numpy(zero_copy_only=False)
        self.codes = {value: code for code, value in enumerate(numbered.dictionary.to_pylist())}

    def having(self, values: Sequence[Value]) -> NDArray[np.bool_]:
        """The labels that hold one of these values [L]."""
        for value in values:
            if type(value) not in self.kinds:
                raise BadInput(f"filter: the attribute {self.name!r} holds {self.type}; {value!r} is none.")
        wanted_U = np.zeros(len(self.codes) + 1, np.bool_)  # the last is what a missing value is numbered
        wanted_U[[self.codes[value] for value in values if value in self.codes]] = True
        found_V: NDArray[np.bool_] = wanted_U[self.code_V]
        if self.label_V is None:
            return found_V
        found_L = np.zeros(self.size, np.bool_)
        found_L[self.label_V[found_V]] = True
        return found_L

    def read(self, text: str) -> Value:
        """A value of this attribute, written as text."""
        try:
            value = text if str in self.kinds else json.loads(text)
        except json.JSONDecodeError:
            value = text
        if type(value) not in self.kinds:
            raise BadInput(f"filter: the attribute {self.name!r} holds {self.type}; {text!r} is none.")
        return cast(Value, value)


def kinds(kind: pa.DataType) -> tuple[type, ...]:
    """Python's types for the values of an Arrow type; none for one that JSON cannot ask for."""
    if pa.types.is_boolean(kind):
        return (bool,)
    if pa.types.is_integer(kind):
        return (int,)
    if pa.types.is_floating(kind):
        return (float, int)
    return (str,) if pa.types.is_string(kind) or pa.types.is_large_string(kind) else ()
