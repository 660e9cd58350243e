"""Exposures: labels that were shown for a query and not clicked (exposures.parquet).

split, query   split of the query, and its text
row            row of the query in the file of that split; null if it is in none
label          row of labels.parquet
impressions    how often the label was shown
first_day, last_day   optional: days on which it was shown
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import DatasetError
from training.data.checks import string_column
from training.data.meta import SplitName
from training.data.ragged import Ragged

EXPOSURES = "exposures"
NUMBERS = {"row": pa.int32(), "label": pa.int32(), "impressions": pa.int64()}
DAYS = ("first_day", "last_day")


def check_exposures(table: Any, file: str, n_labels: int, rows: Mapping[SplitName, int]) -> Any:
    """Return the exposures' columns in their types; `rows` are the numbers of rows of the splits.

    Raises DatasetError for the first row with a split, row or label that does not exist, and without impressions.
    """
    columns = {name: string_column(table, name, file) for name in ("split", "query")}
    columns |= {name: _column(table, name, kind, file) for name, kind in NUMBERS.items()}
    columns |= {name: _column(table, name, pa.date32(), file) for name in DAYS if name in table.column_names}
    split, row, label, impressions = (columns[name] for name in ("split", *NUMBERS))
    names = pa.array(list(rows), pa.large_string())
    _refuse(pc.invert(pc.is_in(split, names)), split, file, f"split is not one of {', '.join(rows)}")
    limit = pa.array(list(rows.values())).take(pc.index_in(split, names))
    outside = pc.or_(pc.less(row, 0), pc.greater_equal(row, limit))
    _refuse(pc.fill_null(outside, False), row, file, "row is not a row of its split")
    outside = pc.or_(pc.less(label, 0), pc.greater_equal(label, n_labels))
    _refuse(pc.fill_null(outside, True), label, file, f"label is not a row of labels.parquet (0 to {n_labels - 1})")
    _refuse(pc.fill_null(pc.less(impressions, 1), True), impressions, file, "impressions is not 1 or more")
    return pa.table(columns)


def labels_shown(exposures: Any, split: SplitName, n_rows: int) -> Ragged:
    """Return the distinct labels that were shown and not clicked, per row of a split with `n_rows` rows."""
    chosen = exposures.filter(pc.and_(pc.equal(exposures["split"], split), pc.is_valid(exposures["row"])))
    row, label = (np.asarray(chosen[name]).astype(np.int64) for name in ("row", "label"))
    row, label = np.divmod(np.unique(row * 2**32 + label), 2**32)
    return Ragged.from_lengths(label.astype(np.int32), np.bincount(row, minlength=n_rows))


def _column(table: Any, name: str, kind: Any, file: str) -> Any:
    if table.column_names.count(name) != 1:
        raise DatasetError(f"{file} needs one column {name}; it has {', '.join(table.column_names) or 'none'}.")
    try:
        return table[name].cast(kind)
    except pa.ArrowException as error:
        raise DatasetError(f"{file}: column {name} is {table[name].type}. Store it as {kind}.") from error


def _refuse(bad: Any, column: Any, file: str, problem: str) -> None:
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise DatasetError(f"{file} row {row}: {problem}: {column[row]}. Prepare the dataset again.")
