"""Contract 1, the prepared dataset: a folder of Parquet files and dataset.json that everything after `prepare` reads.

    labels.parquet                                   id (unique), text, then any attribute columns
    train.parquet, validation.parquet, test.parquet  id, text, labels, exclude (lists of rows of labels.parquet)
    dataset.json                                     DatasetMeta

Row numbers count from 0. Opening checks what is there; reading a table checks each of its rows. What stands in
`exclude` is taken out of `labels` on the way in, so a truth never holds an excluded label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from retrieval.errors import DatasetError
from retrieval.tables.account import RowAccount
from training.data import checks
from training.data.ragged import IntArray, Ragged

__all__ = ["FORMAT_VERSION", "SPLITS", "Dataset", "DatasetMeta", "Ragged", "Split", "SplitCounts", "SplitName"]

FORMAT_VERSION = 1
TEXT = pa.large_string()
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


class SplitCounts(BaseModel):
    """What one split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    positives: int
    rows_without_labels: int


class DatasetMeta(BaseModel):
    """dataset.json: where the data came from, with which settings, and what preparing it counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    source: str = ""
    settings: dict[str, JsonValue] = {}
    labels: int = 0
    splits: dict[SplitName, SplitCounts] = {}
    accounts: dict[Literal["rows", "labels"], RowAccount] = {}
    report: dict[str, int] = {}
    skipped: int = 0
    skipped_first: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class Split:
    """R queries with their true labels (the excluded ones already taken out) and the labels to exclude.

    `ids_column` and `texts_column` are Arrow string columns; `ids` and `texts` make Python strings of them once.
    """

    ids_column: Any
    texts_column: Any
    labels: Ragged
    exclude: Ragged

    @classmethod
    def from_lists(cls, ids: Sequence[str], texts: Sequence[str], labels: Ragged, exclude: Ragged) -> "Split":
        """Build from Python strings; all four have R entries."""
        return cls(pa.chunked_array([pa.array(ids, TEXT)]), pa.chunked_array([pa.array(texts, TEXT)]),
                   labels, exclude)  # fmt: skip

    @classmethod
    def from_table(cls, table: Any) -> "Split":
        """Build from a table in canonical form (checks.split_table), taking the excluded labels out of the truth."""
        labels, exclude = Ragged.from_arrow(table["labels"]), Ragged.from_arrow(table["exclude"])
        return cls(table["id"].cast(TEXT), table["text"].cast(TEXT), labels.keep(~labels.overlap(exclude)), exclude)

    @cached_property
    def ids(self) -> list[str]:
        """R ids."""
        return list(self.ids_column.to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """R query texts."""
        return list(self.texts_column.to_pylist())

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows_N: IntArray) -> "Split":
        """N rows by number, in the order given."""
        return Split(
            take_rows(self.ids_column, rows_N),
            take_rows(self.texts_column, rows_N),
            self.labels.take(rows_N),
            self.exclude.take(rows_N),
        )

    def followed_by(self, other: "Split") -> "Split":
        """These rows and then those of `other`."""
        ids, texts = (
            pa.chunked_array([*mine.chunks, *more.chunks], TEXT)
            for mine, more in ((self.ids_column, other.ids_column), (self.texts_column, other.texts_column))
        )
        return Split(ids, texts, self.labels.followed_by(other.labels), self.exclude.followed_by(other.exclude))

    def table(self) -> Any:
        """The four columns of the split's file."""
        return pa.table(
            [self.ids_column, self.texts_column, self.labels.to_arrow(), self.exclude.to_arrow()],
            schema=checks.SPLIT_SCHEMA,
        )

    def counts(self) -> SplitCounts:
        """Rows, positives, and rows that have none."""
        lengths = self.labels.lengths
        return SplitCounts(
            rows=len(self), positives=int(lengths.sum()), rows_without_labels=int(np.count_nonzero(lengths == 0))
        )


def take_rows(column: Any, rows_N: IntArray) -> Any:
    """Return N rows of a chunked column by number, in the order given, without copying the whole column."""
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


class Dataset:
    """A prepared dataset, read piece by piece: each piece is loaded and checked when it is first asked for."""

    def __init__(self, folder: Path, meta: DatasetMeta) -> None:
        self.folder = folder
        self.meta = meta
        self._splits: dict[SplitName, Split] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "Dataset":
        """Open a prepared dataset; DatasetError when dataset.json or a file is missing or not what it should be."""
        folder = Path(folder)
        meta = read_meta(folder)
        for name in ("labels", *SPLITS):
            if not (folder / f"{name}.parquet").is_file():
                raise DatasetError(f"{folder} has no {name}.parquet. Make it again with `diptych prepare`.")
        return cls(folder, meta)

    @cached_property
    def label_table(self) -> Any:
        """The L labels: id, text and attribute columns. DatasetError names the first bad row."""
        return checks.label_table(self._read("labels"), "labels.parquet")

    @cached_property
    def label_texts(self) -> list[str]:
        """L label texts."""
        return list(self.label_table["text"].to_pylist())

    @property
    def n_labels(self) -> int:
        """L."""
        return int(self.label_table.num_rows)

    def split(self, name: str) -> Split:
        """One split, each row checked; DatasetError names the first bad row, or the splits that there are."""
        if name not in SPLITS:
            raise DatasetError(f"there is no split {name!r}. Choose one of {', '.join(SPLITS)}.")
        if name not in self._splits:
            self._splits[name] = self._checked(name)
        return self._splits[name]

    def scored(self, name: str) -> Split:
        """The queries of a split that have a true label, in their order; DatasetError when there is none."""
        split = self.split(name)
        scored = split.take(np.flatnonzero(split.labels.lengths > 0))
        if not len(scored):
            raise DatasetError(f"{self.folder}: the split '{name}' has no query with a true label to measure on.")
        return scored

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the labels and the three splits; DatasetError when it is not the one dataset.json records."""
        from training.data.fingerprint import fingerprint

        found = fingerprint(self.label_table, {name: self.split(name) for name in SPLITS})
        if self.meta.fingerprint not in ("", found):
            raise DatasetError(
                f"{self.folder} does not hold what dataset.json records: fingerprint {found[:12]} instead of "
                f'{self.meta.fingerprint[:12]}. Prepare it again, or set "fingerprint" to "" if that was on purpose.'
            )
        return found

    def _checked(self, name: SplitName) -> Split:
        file = f"{name}.parquet"
        table = checks.split_table(self._read(name), file, self.n_labels)
        split = Split.from_table(table)
        if name == "train":
            checks.every_row_has_a_positive(split.labels, file)
        return split

    def _read(self, name: str) -> Any:
        path = self.folder / f"{name}.parquet"
        try:
            with path.open("rb") as file:  # Arrow opens only paths that are UTF-8
                return pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{path} cannot be read as Parquet ({error}). Prepare the dataset again.") from error


def read_meta(folder: Path) -> DatasetMeta:
    """dataset.json of a prepared dataset; DatasetError when there is none or it is not one of this version."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            f"{folder} is not a prepared dataset: it has no dataset.json. Make one with `diptych prepare`."
        )
    try:
        return DatasetMeta.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DatasetError(f"{path}: {where}: {first['msg']}. Prepare the dataset again.") from error
