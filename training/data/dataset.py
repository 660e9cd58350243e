"""Contract 1: the prepared dataset, a folder of Parquet files and dataset.json. All later commands read it.

    labels.parquet                                   id (unique), text, attribute columns
    train.parquet, validation.parquet, test.parquet  id, text, labels, exclude (lists of rows of labels.parquet)
    dataset.json                                     DatasetMeta

Row numbers count from 0. Opening a dataset checks that its files exist; reading a table checks each row. Labels in
`exclude` are removed from `labels` when a split is read, so a true label is never an excluded one.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
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

FORMAT_VERSION = 2  # of dataset.json; 2: keys of `notes` are identifiers
ROWS_PER_HASH_UPDATE = 65_536
TEXT = pa.large_string()
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


class SplitCounts(BaseModel):
    """Sizes of one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    positives: int
    rows_without_labels: int


class DatasetMeta(BaseModel):
    """dataset.json: source, settings, sizes and counts of a prepared dataset.

    `notes` maps identifiers to counts, or to counts by name, such as `{"unused_columns": {"price": 200}}`;
    training/prepare/summary.py has their texts. `skipped_first` are messages for the first of `skipped` bad rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = 2
    name: str
    source: str = ""
    settings: dict[str, JsonValue] = {}
    labels: int = 0
    splits: dict[SplitName, SplitCounts] = {}
    accounts: dict[Literal["rows", "labels"], RowAccount] = {}
    notes: dict[str, int | dict[str, int]] = {}
    skipped: int = 0
    skipped_first: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class Split:
    """R queries with their true labels (without the excluded ones) and their excluded labels.

    `ids_column` and `texts_column` are Arrow string columns; `ids` and `texts` convert them to Python strings once.
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
        """Build from a table of `checks.check_split_table`; excluded labels are removed from the true labels."""
        labels, exclude = Ragged.from_arrow(table["labels"]), Ragged.from_arrow(table["exclude"])
        return cls(table["id"].cast(TEXT), table["text"].cast(TEXT), labels.keep(~labels.overlap(exclude)), exclude)

    @cached_property
    def ids(self) -> list[str]:
        """Return R ids."""
        return list(self.ids_column.to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        """Return R query texts."""
        return list(self.texts_column.to_pylist())

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows_N: IntArray) -> "Split":
        """Return N rows by number, in that order."""
        return Split(
            take_rows(self.ids_column, rows_N),
            take_rows(self.texts_column, rows_N),
            self.labels.take(rows_N),
            self.exclude.take(rows_N),
        )

    def followed_by(self, other: "Split") -> "Split":
        """Return these rows, then those of `other`."""
        ids, texts = (
            pa.chunked_array([*first.chunks, *second.chunks], TEXT)
            for first, second in ((self.ids_column, other.ids_column), (self.texts_column, other.texts_column))
        )
        return Split(ids, texts, self.labels.followed_by(other.labels), self.exclude.followed_by(other.exclude))

    def table(self) -> Any:
        """Return the four columns of the split's file."""
        return pa.table(
            [self.ids_column, self.texts_column, self.labels.to_arrow(), self.exclude.to_arrow()],
            schema=checks.SPLIT_SCHEMA,
        )

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
        return checks.check_label_table(self._read("labels"), "labels.parquet")

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

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the labels and splits. Raises DatasetError if dataset.json records another one."""
        actual = fingerprint(self.label_table, {name: self.split(name) for name in SPLITS})
        if self.meta.fingerprint not in ("", actual):
            raise DatasetError(
                f"{self.folder} differs from its dataset.json: the fingerprint is {actual[:12]}, recorded is "
                f'{self.meta.fingerprint[:12]}. Prepare it again, or set "fingerprint" to "" if that is on purpose.'
            )
        return actual

    def _checked(self, name: SplitName) -> Split:
        file = f"{name}.parquet"
        table = checks.check_split_table(self._read(name), file, self.n_labels)
        split = Split.from_table(table)
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


def read_meta(folder: Path) -> DatasetMeta:
    """Read dataset.json of a prepared dataset. Raises DatasetError if it is missing, invalid or of another version."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            f"{folder} is not a prepared dataset: it has no dataset.json. Make one with `diptych prepare`."
        )
    try:
        return DatasetMeta.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DatasetError(f"{path}: {_first_problem(error)}. Prepare the dataset again.") from error


def _first_problem(error: ValidationError) -> str:
    """Describe the first error; another format version explains all others."""
    problems = {".".join(map(str, problem["loc"])): problem for problem in error.errors()}
    if "format_version" in problems:
        return f"format_version is {problems['format_version']['input']}, not {FORMAT_VERSION}"
    where, problem = next(iter(problems.items()))
    return f"{where or 'the file'}: {problem['msg']}"


def fingerprint(label_table: Any, splits: Mapping[Any, Split]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of the label table's columns and of each split's rows, in order.

    It depends on the values only, not on Parquet's compression, chunks or version.
    """
    digest = hashlib.sha256()
    for name in label_table.column_names:
        _hash_column(digest, f"labels.{name}", label_table[name])
    for name, split in splits.items():
        _hash_column(digest, f"{name}.id", split.ids_column)
        _hash_column(digest, f"{name}.text", split.texts_column)
        _hash_lists(digest, f"{name}.labels", split.labels)
        _hash_lists(digest, f"{name}.exclude", split.exclude)
    return digest.hexdigest()


def _hash_column(digest: "hashlib._Hash", name: str, column: Any) -> None:
    digest.update(f"\0{name}:{len(column)}\0".encode())
    for start in range(0, len(column), ROWS_PER_HASH_UPDATE):
        values = column.slice(start, ROWS_PER_HASH_UPDATE).to_pylist()
        digest.update(json.dumps(values, default=str).encode())


def _hash_lists(digest: "hashlib._Hash", name: str, lists: Ragged) -> None:
    digest.update(f"\0{name}:{len(lists)}\0".encode())
    digest.update(lists.offsets.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(lists.values, dtype="<i4").tobytes())
