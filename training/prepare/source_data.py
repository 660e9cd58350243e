"""The rows and labels of a source in flat columns, without a Python object per row.

Shapes: L labels, R rows, V positives of all rows, E exposures.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.ragged import Ragged

UNSPLIT, TRAIN, VALIDATION, TEST = -1, 0, 1, 2


@dataclass(frozen=True)
class Positives:
    """The labels of R rows, and columns parallel to `labels.values`: `weights`, `first_day`, `last_day` if known."""

    labels: Ragged
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def keep(self, kept_V: npt.NDArray[np.bool_]) -> "Positives":
        """Return the same rows with only the positives where `kept_V` is true."""
        return Positives(self.labels.keep(kept_V), {name: values[kept_V] for name, values in self.columns.items()})

    def renumbered(self, number_L: npt.NDArray[np.int32]) -> "Positives":
        """Return the same rows with other label numbers."""
        return Positives(Ragged(number_L[self.labels.values], self.labels.offsets), self.columns)

    def arrow(self, rows_R: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Return the selected rows as Arrow list columns: `labels`, and one per column."""
        lists = {"labels": self.labels.select(rows_R).to_arrow()}
        chosen_V = np.repeat(rows_R, self.labels.lengths)
        for name, values in self.columns.items():
            flat, chunks, start = pa.array(values[chosen_V]), [], 0
            for chunk in lists["labels"].chunks:
                chunks.append(pa.ListArray.from_arrays(chunk.offsets, flat.slice(start, len(chunk.values))))
                start += len(chunk.values)
            lists[name] = pa.chunked_array(chunks)
        return lists


@dataclass
class SourceData:
    """All rows and labels of a source, before they are split and filtered.

    label_ids, label_texts: Arrow, L; label_columns: Arrow columns of L; is_label_L: false for texts that occur only in
    `exclude`; ids, texts: Arrow, R; split_R: TRAIN, VALIDATION, TEST or UNSPLIT; hash_R2: text_hashes of the text.
    The first `listed` labels come from a label table. `from_pairs`: the input had a row per (query, label) pair.
    exposures: Arrow table of E pairs without clicks: query, hash_1 (of the query), row (in R, null if the query has no
    row), split, label (in L), impressions, first_day, last_day; None if there are none. `excluded_may_be_true`: see
    DatasetMeta.
    """

    label_ids: Any
    label_texts: Any
    label_columns: dict[str, Any]
    is_label_L: npt.NDArray[np.bool_]
    ids: Any
    texts: Any
    split_R: npt.NDArray[np.int8]
    hash_R2: npt.NDArray[np.uint64]
    positives: Positives
    exclude: Ragged
    listed: int = 0
    from_pairs: bool = False
    exposures: Any = None
    excluded_may_be_true: bool = False


def text_column(texts: Any) -> Any:
    """Return texts, a list or an Arrow column, as an Arrow column with 64-bit offsets: they may exceed 2 GB."""
    if isinstance(texts, pa.ChunkedArray):
        return texts.cast(pa.large_string())
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def padded(column: Any, length: int) -> Any:
    """Return an Arrow column extended by nulls to `length` values."""
    return pa.chunked_array([*column.chunks, pa.nulls(length - len(column), column.type)], column.type)
