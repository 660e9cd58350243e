"""One split of a dataset: queries with their true labels, click weights and days, and excluded labels.

Shapes: R queries, N selected rows, V true labels of all queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from training.data import checks
from training.data.meta import SplitCounts
from training.data.ragged import IntArray, Ragged

TEXT = pa.large_string()
Days = NDArray[np.datetime64]
NO_DAY = np.datetime64("NaT", "D")
MISSING: dict[str, Any] = {"weights": np.float32(1), "first_day": NO_DAY, "last_day": NO_DAY}


@dataclass(frozen=True, eq=False)
class Split:
    """R queries with their true labels (without the excluded ones) and their excluded labels.

    `ids_column` and `texts_column` are Arrow string columns; `ids` and `texts` convert them to Python strings once.
    `weights_V` (float32, above 0), `first_day_V` and `last_day_V` (datetime64[D]) are parallel to `labels.values`; None
    if the dataset has none. Without weights, each true label has weight 1.
    """

    ids_column: Any
    texts_column: Any
    labels: Ragged
    exclude: Ragged
    weights_V: NDArray[np.float32] | None = None
    first_day_V: Days | None = None
    last_day_V: Days | None = None

    @classmethod
    def from_lists(cls, ids: Sequence[str], texts: Sequence[str], labels: Ragged, exclude: Ragged) -> "Split":
        """Build from Python strings; all four have R entries."""
        return cls(pa.chunked_array([pa.array(ids, TEXT)]), pa.chunked_array([pa.array(texts, TEXT)]),
                   labels, exclude)  # fmt: skip

    @classmethod
    def from_table(cls, table: Any) -> "Split":
        """Build from a table of `checks.check_split_table`; excluded labels are removed from the true labels."""
        labels, exclude = Ragged.from_arrow(table["labels"]), Ragged.from_arrow(table["exclude"])
        kept_V = ~labels.overlap(exclude)
        pairs = {f"{name}_V": np.asarray(pc.list_flatten(table[name]))[kept_V] for name in _pair_columns(table)}
        return cls(table["id"].cast(TEXT), table["text"].cast(TEXT), labels.keep(kept_V), exclude, **pairs)

    @cached_property
    def ids(self) -> list[str]:
        """Return R ids."""
        return list(self.ids_column.to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """Return R query texts."""
        return list(self.texts_column.to_pylist())

    @property
    def pair_values(self) -> dict[str, NDArray[Any]]:
        """Return weights and days by the name of their column, as far as the split has them; each parallel to V."""
        values = {"weights": self.weights_V, "first_day": self.first_day_V, "last_day": self.last_day_V}
        return {name: value_V for name, value_V in values.items() if value_V is not None}

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows_N: IntArray) -> "Split":
        """Return N rows by number, in that order."""
        positions = self.labels.value_positions(rows_N)
        return Split(
            take_rows(self.ids_column, rows_N),
            take_rows(self.texts_column, rows_N),
            self.labels.take(rows_N),
            self.exclude.take(rows_N),
            **{f"{name}_V": value_V[positions] for name, value_V in self.pair_values.items()},
        )

    def with_labels(self, kept_V: NDArray[np.bool_]) -> "Split":
        """Return the same rows with only those true labels that `kept_V` marks."""
        pairs = {f"{name}_V": value_V[kept_V] for name, value_V in self.pair_values.items()}
        return Split(self.ids_column, self.texts_column, self.labels.keep(kept_V), self.exclude, **pairs)

    def followed_by(self, other: "Split") -> "Split":
        """Return these rows, then those of `other`. Where one has no weights, they are 1; where no days, NaT."""
        ids, texts = (
            pa.chunked_array([*first.chunks, *second.chunks], TEXT)
            for first, second in ((self.ids_column, other.ids_column), (self.texts_column, other.texts_column))
        )
        pairs = {
            f"{name}_V": np.concatenate([_or_missing(self, name), _or_missing(other, name)])
            for name in {**self.pair_values, **other.pair_values}
        }
        labels, exclude = self.labels.followed_by(other.labels), self.exclude.followed_by(other.exclude)
        return Split(ids, texts, labels, exclude, **pairs)

    def table(self) -> Any:
        """Return the columns of the split's file."""
        columns = [self.ids_column, self.texts_column, self.labels.to_arrow(), self.exclude.to_arrow()]
        table = pa.table(columns, schema=checks.SPLIT_SCHEMA)
        for name, value_V in self.pair_values.items():
            table = table.append_column(name, self.labels.to_arrow(value_V))
        return table

    def counts(self) -> SplitCounts:
        """Count rows, positives, and rows without a true label."""
        lengths = self.labels.lengths
        return SplitCounts(
            rows=len(self), positives=int(lengths.sum()), rows_without_labels=int(np.count_nonzero(lengths == 0))
        )


def take_rows(column: Any, rows_N: IntArray) -> Any:
    """Return N rows of a chunked column by number, in that order, without copying the whole column."""
    if column.num_chunks <= 1:
        return column.take(pa.array(rows_N))
    order_N = np.argsort(rows_N, kind="stable")
    sorted_N = np.asarray(rows_N, np.int64)[order_N]
    starts = np.cumsum([0, *map(len, column.chunks)])
    bounds = np.searchsorted(sorted_N, starts)
    pieces = [
        chunk.take(pa.array(sorted_N[first:last] - start))
        for chunk, start, first, last in zip(column.chunks, starts[:-1], bounds[:-1], bounds[1:], strict=True)
        if last > first
    ]
    gathered = pa.chunked_array(pieces, column.type)
    if np.array_equal(order_N, np.arange(len(order_N))):
        return gathered
    return gathered.take(pa.array(np.argsort(order_N)))


def _pair_columns(table: Any) -> list[str]:
    return [name for name in checks.PAIR_TYPES if name in table.column_names]


def _or_missing(split: Split, name: str) -> NDArray[Any]:
    return split.pair_values.get(name, np.full(len(split.labels.values), MISSING[name]))
