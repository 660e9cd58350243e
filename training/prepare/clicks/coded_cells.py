"""The cells of a click log with the split of each, as rows of the SQL table `coded`.

Columns: iid (query), lid (label), split, day, position, origin, clicks, impressions, rows; null if the log has no such
column. Shapes: Q queries, L labels, N cells of a batch.
"""

from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.prepare.clicks.blocks import COUNTS, DIMENSIONS, MergedBlocks
from training.prepare.clicks.time_split import Period
from training.prepare.source_data import TEST, TRAIN, UNSPLIT, VALIDATION

SCHEMA = pa.schema({"iid": pa.int32(), "lid": pa.int32(), **DIMENSIONS, **COUNTS})
HASHES = 2**64


class CodedCells:
    """Cells that can be read by one SQL query at a time."""

    def __init__(
        self, source: MergedBlocks, keep_L: npt.NDArray[np.bool_], period: Period | None,
        hash_Q: npt.NDArray[np.uint64], max_validation: int,
    ) -> None:  # fmt: skip
        """Choose the split of each cell: that of the row, or that of the day with a period, or UNSPLIT.

        keep_L: labels whose cells are read; hash_Q: of each query. Of the queries in the time of validation, about
        `max_validation` are validation queries; their rows of that time are not in training. The other rows of that
        time are.
        """
        self._source, self._period = source, period
        self._keep_L = None if keep_L.all() else keep_L
        self._is_validation_Q = np.zeros(len(hash_Q), np.bool_)
        if period and period.validation_from and period.test_from:
            queries = self._queries_clicked(period.validation_from, period.test_from)
            largest = min(HASHES - 1, HASHES * max_validation // max(queries, 1))
            self._is_validation_Q = hash_Q <= np.uint64(largest)

    def register(self, connection: Any) -> None:
        """Make the table `coded` for the next query of a connection, which reads it once."""
        connection.register("coded", pa.RecordBatchReader.from_batches(SCHEMA, self._batches()))

    def _batches(self) -> Iterator[Any]:
        for batch in self._kept(self._source.cells()):
            columns = {"iid": batch["query"], "lid": batch["label"]}
            for name, type in (*DIMENSIONS.items(), *COUNTS.items()):
                has_column = name in batch.schema.names
                columns[name] = batch[name] if has_column else pa.nulls(batch.num_rows, type)
            columns["split"] = pa.array(self._splits(columns["iid"], columns["split"], columns["day"]))
            yield pa.record_batch(columns, schema=SCHEMA)

    def _kept(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch if self._keep_L is None else batch.filter(pa.array(self._keep_L[np.asarray(batch["label"])]))

    def _splits(self, iid_N: Any, split_N: Any, day_N: Any) -> npt.NDArray[np.int8]:
        period = self._period
        if period is None or period.test_from is None:
            return np.asarray(pc.fill_null(split_N, UNSPLIT))
        days_N = np.asarray(day_N.cast(pa.int32()))
        is_test_N = days_N >= _number(period.test_from)
        is_validation_N = self._is_validation_Q[np.asarray(iid_N)]
        if period.validation_from:
            is_validation_N &= days_N >= _number(period.validation_from)
        return np.where(is_test_N, TEST, np.where(is_validation_N, VALIDATION, TRAIN)).astype(np.int8)

    def _queries_clicked(self, start: date, end: date) -> int:
        """Return the number of queries with a click from a day to the day before `end`."""
        is_clicked_Q = np.zeros(len(self._is_validation_Q), np.bool_)
        for batch in self._kept(self._source.cells(since=start)):
            day_N = np.asarray(batch["day"].cast(pa.int32()))
            counts_N = (day_N >= _number(start)) & (day_N < _number(end)) & (np.asarray(batch["clicks"]) > 0)
            is_clicked_Q[np.asarray(batch["query"])[counts_N]] = True
        return int(is_clicked_Q.sum())


def _number(day: date) -> int:
    """Return the number of a day as Arrow counts it."""
    return (day - date(1970, 1, 1)).days
