"""Lists of different lengths in two flat arrays: a million label lists need no Python objects.

Shapes: R rows, V values in all rows, N selected rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

IntArray = npt.NDArray[np.integer[Any]]
ROWS_PER_STEP = 262_144
MAX_VALUES_PER_CHUNK = 2**31 - 1  # an Arrow list array has 32-bit offsets


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[IntArray]):
    """R integer lists: row r is `values[offsets[r]:offsets[r + 1]]`.

    values: V int32 or int64; offsets: R + 1 int64, ascending from 0 to V.
    """

    values: IntArray
    offsets: npt.NDArray[np.int64]

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int] | IntArray]) -> "Ragged":
        """Build from R sequences of integers."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        lengths_R = np.fromiter((len(array) for array in arrays), dtype=np.int64, count=len(arrays))
        values_V = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
        return cls.from_lengths(values_V, lengths_R)

    @classmethod
    def from_lengths(cls, values_V: IntArray, lengths_R: IntArray) -> "Ragged":
        """Build from V values in row order and R row lengths that add up to V."""
        offsets = np.zeros(len(lengths_R) + 1, dtype=np.int64)
        np.cumsum(lengths_R, out=offsets[1:])
        return cls(values_V, offsets)

    @classmethod
    def from_arrow(cls, column: Any) -> "Ragged":
        """Build from an Arrow list column without nulls (plain, large or fixed-size lists; chunked or not)."""
        lengths_R = np.asarray(pc.list_value_length(column)).astype(np.int64)
        return cls.from_lengths(np.asarray(pc.list_flatten(column)).astype(np.int32, copy=False), lengths_R)

    @classmethod
    def empty(cls, n_rows: int) -> "Ragged":
        """Build R empty rows."""
        return cls(np.empty(0, np.int32), np.zeros(n_rows + 1, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> IntArray: ...
    @overload
    def __getitem__(self, row: slice) -> "Ragged": ...
    def __getitem__(self, row: int | slice) -> "IntArray | Ragged":
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step != 1:
                return self.take(np.arange(start, stop, step))
            offsets = self.offsets[start : max(start, stop) + 1]
            return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Return R row lengths."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> npt.NDArray[np.int64]:
        """Return the row number of each of V values."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def take(self, rows_N: IntArray) -> "Ragged":
        """Return N rows by number, in that order."""
        return Ragged.from_lengths(self.values[self.value_positions(rows_N)], self.lengths[rows_N])

    def value_positions(self, rows_N: IntArray) -> npt.NDArray[np.int64]:
        """Return the position in `values` of each value of `take(rows_N)`."""
        lengths_N = self.lengths[rows_N]
        begin_N: npt.NDArray[np.int64] = np.cumsum(lengths_N) - lengths_N
        shift_V: npt.NDArray[np.int64] = np.repeat(self.offsets[:-1][rows_N] - begin_N, lengths_N)
        return np.arange(len(shift_V)) + shift_V

    def select(self, chosen_R: npt.NDArray[np.bool_]) -> "Ragged":
        """Return the rows where `chosen_R` is true. Needs less memory than `take`."""
        return Ragged.from_lengths(self.values[np.repeat(chosen_R, self.lengths)], self.lengths[chosen_R])

    def keep(self, kept_V: npt.NDArray[np.bool_]) -> "Ragged":
        """Return the same rows with only the values where `kept_V` is true."""
        before = np.concatenate([[0], np.cumsum(kept_V, dtype=np.int64)])
        return Ragged(self.values[kept_V], before[self.offsets])

    def without_repeats(self) -> "Ragged":
        """Return the same rows with each value only where it first occurs in its row. No value may be negative."""
        base = int(self.values.max(initial=0)) + 1
        first_V = np.zeros(len(self.values), np.bool_)
        first_V[np.unique(self.keys(base), return_index=True)[1]] = True
        return self.keep(first_V)

    def concat_values(self, other: "Ragged") -> "Ragged":
        """Return R rows; each has its values, then those of the same row of `other`."""
        order_V = np.argsort(np.concatenate([self.row_of_value, other.row_of_value]), kind="stable")
        return Ragged.from_lengths(np.concatenate([self.values, other.values])[order_V], self.lengths + other.lengths)

    def followed_by(self, other: "Ragged") -> "Ragged":
        """Return these rows, then those of `other`."""
        return Ragged.from_lengths(
            np.concatenate([self.values, other.values]), np.concatenate([self.lengths, other.lengths])
        )

    def keys(self, base: int) -> npt.NDArray[np.int64]:
        """Return V numbers `row * base + value`, unique per (row, value) if all values are in 0..base-1."""
        return self.row_of_value * base + self.values

    def overlap(self, other: "Ragged") -> npt.NDArray[np.bool_]:
        """Return V booleans: whether the same row of `other` has the value too. No value may be negative."""
        overlap_V = np.zeros(len(self.values), np.bool_)
        if not len(self.values) or not len(other.values):
            return overlap_V
        base = int(max(self.values.max(), other.values.max())) + 1
        for start in range(0, len(self), ROWS_PER_STEP):
            part, other_part = self[start : start + ROWS_PER_STEP], other[start : start + ROWS_PER_STEP]
            first = self.offsets[start]
            overlap_V[first : first + len(part.values)] = np.isin(part.keys(base), other_part.keys(base))
        return overlap_V

    def to_arrow(self, values_V: npt.NDArray[Any] | None = None, max_values: int = MAX_VALUES_PER_CHUNK) -> Any:
        """Return an Arrow column of list<int32>, in chunks of at most `max_values` values.

        `values_V`, parallel to `values`, replaces the values; its type decides that of the lists.
        """
        values_V = self.values.astype(np.int32, copy=False) if values_V is None else values_V
        starts = [0]
        while starts[-1] < len(self):
            last = int(np.searchsorted(self.offsets, self.offsets[starts[-1]] + max_values, side="right")) - 1
            starts.append(max(last, starts[-1] + 1))
        chunks = [self.offsets[start : stop + 1] for start, stop in pairwise(starts)] or [self.offsets]
        return pa.chunked_array([pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)),
                                 pa.array(values_V[offsets[0] : offsets[-1]])) for offsets in chunks])  # fmt: skip
