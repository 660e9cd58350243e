"""Contract 1: the prepared dataset, a folder of Parquet files and dataset.json. All later commands read it.

    labels.parquet      id (unique), text, attribute columns; optional dates: first_seen, last_seen
    train.parquet, validation.parquet, test.parquet
                        id, text, labels, exclude (lists of rows of labels.parquet); optional lists parallel to labels:
                        weights, first_day, last_day
    exposures.parquet   optional: labels that were shown and not clicked (exposures.py)
    dataset.json        DatasetMeta (meta.py)

Row numbers count from 0. Opening a dataset checks that its files exist; reading a table checks each row. Labels in
`exclude` are left out of rankings and removed from `labels` when a split is read. If dataset.json has
`excluded_may_be_true`, they stay true labels, and positives of training.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import DatasetError
from training.data import checks
from training.data.exposures import EXPOSURES, check_exposures
from training.data.fingerprint import fingerprint
from training.data.meta import FORMAT_VERSION, SPLITS, DatasetMeta, SplitCounts, SplitName, read_meta
from training.data.ragged import Ragged
from training.data.split import Days, Split

__all__ = [
    "FORMAT_VERSION", "SPLITS", "Dataset", "DatasetMeta", "Ragged", "Split", "SplitCounts", "SplitName",
]  # fmt: skip


class Dataset:
    """A prepared dataset. Each table is loaded and checked when it is first used."""

    def __init__(self, folder: Path, meta: DatasetMeta) -> None:
        self.folder = folder
        self.meta = meta
        self._splits: dict[SplitName, Split] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "Dataset":
        """Open a prepared dataset. Raises DatasetError if dataset.json is invalid or a file is missing."""
        folder = Path(folder)
        meta = read_meta(folder)
        for name in ("labels", *SPLITS):
            if not (folder / f"{name}.parquet").is_file():
                raise DatasetError(f"{folder} has no {name}.parquet. Prepare the dataset again with `diptych prepare`.")
        return cls(folder, meta)

    @cached_property
    def label_table(self) -> Any:
        """Return the L labels: id, text and attribute columns. Raises DatasetError for the first invalid row."""
        return self._all_label_columns.drop_columns(checks.label_day_columns(self._all_label_columns))

    @cached_property
    def label_days(self) -> dict[str, Days]:
        """Return `first_seen` and `last_seen` of the L labels, as far as the dataset has them; NaT: unknown."""
        table = self._all_label_columns
        return {name: np.asarray(table[name]) for name in checks.label_day_columns(table)}

    @cached_property
    def label_texts(self) -> list[str]:
        """Return L label texts."""
        return list(self.label_table["text"].to_pylist())

    @property
    def n_labels(self) -> int:
        """Return the number of labels, L."""
        return int(self.label_table.num_rows)

    def split(self, name: str) -> Split:
        """Return a split, each row checked. Raises DatasetError for the first invalid row and for an unknown name."""
        if name not in SPLITS:
            raise DatasetError(f"{name!r} is not a split. Choose one of {', '.join(SPLITS)}.")
        if name not in self._splits:
            self._splits[name] = self._checked(name)
        return self._splits[name]

    def scored(self, name: str) -> Split:
        """Return the queries of a split that have a true label, in order. Raises DatasetError if there is none."""
        split = self.split(name)
        scored = split.take(np.flatnonzero(split.labels.lengths > 0))
        if not len(scored):
            raise DatasetError(
                f"{self.folder}: the split '{name}' has no query with a true label. Evaluate another split, or prepare "
                "the dataset with more rows in this one."
            )
        return scored

    def exposures(self) -> Any:
        """Return the table of exposures; None if there is none. Raises DatasetError for the first invalid row."""
        if not (self.folder / f"{EXPOSURES}.parquet").is_file():
            return None
        rows = {name: len(self.split(name)) for name in SPLITS}
        return check_exposures(self._read(EXPOSURES), f"{EXPOSURES}.parquet", self.n_labels, rows)

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the content. Raises DatasetError if dataset.json records another one."""
        splits = {name: self.split(name) for name in SPLITS}
        actual = fingerprint(self._all_label_columns, splits, self.exposures())
        if self.meta.fingerprint not in ("", actual):
            raise DatasetError(
                f"{self.folder} differs from its dataset.json: the fingerprint is {actual[:12]}, recorded is "
                f'{self.meta.fingerprint[:12]}. Prepare it again, or set "fingerprint" to "" if that is on purpose.'
            )
        return actual

    @cached_property
    def _all_label_columns(self) -> Any:
        return checks.check_label_table(self._read("labels"), "labels.parquet")

    def _checked(self, name: SplitName) -> Split:
        file = f"{name}.parquet"
        table = checks.check_split_table(self._read(name), file, self.n_labels)
        split = split_of(table, name, self.meta)
        if name == "train":
            checks.require_positives(split.labels, file)
        return split

    def _read(self, name: str) -> Any:
        path = self.folder / f"{name}.parquet"
        try:
            with path.open("rb") as file:  # Arrow opens only paths that are UTF-8
                return pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{path} cannot be read as Parquet ({error}). Prepare the dataset again.") from error


def split_of(table: Any, name: SplitName, meta: DatasetMeta) -> Split:
    """Build a split from its checked table, as dataset.json says."""
    split = Split.from_table(table, excluded_may_be_true=meta.excluded_may_be_true)
    return split.without_true_exclusions() if name == "train" else split
