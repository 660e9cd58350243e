"""Queries with their labels, from JSON Lines, CSV, TSV and Parquet: a row a query, or a row a click.

A record whose label column holds a list is a query with all its labels; one whose label column holds a text is one
(query, label) pair, and pairs of one query are gathered. One source has one of the two forms.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.errors import DatasetError
from training.data.catalogue import Catalogue, key_of
from training.data.files import Meter, kind
from training.data.intake import UNSPLIT, Pairs, Raw, Rows
from training.data.rows import BadRow, Problems, count_of, shown, split_code, text_of
from training.data.tables import records


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None: `query`, `labels` or `label`, `split` where there is one, and no counts."""

    query: str | None = None
    label: str | None = None
    split: str | None = None
    count: str | None = None


@dataclass
class Reader:
    """Takes records in, one by one, and numbers their labels."""

    columns: Columns
    limit: int
    catalogue: Catalogue
    report: Counter[str]
    min_count: int = 0
    rows: Rows = field(default_factory=Rows)
    pairs: Pairs = field(default_factory=Pairs)
    lists: bool | None = None
    has_split: bool | None = None

    def take(self, record: Mapping[str, Any]) -> None:
        """Add one record; BadRow when it cannot be used."""
        query = text_of(_cell(record, self.columns.query or "query"), "query", self.limit)
        label_column = self.columns.label or ("labels" if "labels" in record else "label")
        value = _cell(record, label_column)
        if self._is_list(value, label_column):
            self._take_row(record, query, self._keys(value, label_column))
        else:
            key = self._key(value, label_column)
            times = 1 if self.columns.count is None else count_of(_cell(record, self.columns.count), self.columns.count)
            self.pairs.append(self._split(record), query, self.catalogue.row(key), times)
        used = {self.columns.query or "query", label_column, self.columns.split or "split", self.columns.count}
        for name in record.keys() - used - ({"id", "exclude"} if self.lists else set()):
            self.report[f"rows with the column {name!r}, which is not used"] += 1

    def _take_row(self, record: Mapping[str, Any], query: str, labels: list[str]) -> None:
        row_id = record.get("id")
        name = None if row_id is None else key_of(row_id, "id", self.limit)
        exclude = self._keys(record.get("exclude") or [], "exclude")
        found = [self.catalogue.find(text) for text in exclude]
        known = [row for row in found if row is not None]
        self.report["excluded labels that are in no label table"] += len(found) - len(known)
        self.rows.append(self._split(record), name, query, [self.catalogue.row(text) for text in labels], known)

    def _split(self, record: Mapping[str, Any]) -> int:
        column = self.columns.split or "split"
        value = record.get(column) if self.columns.split is None else _cell(record, column)
        if self.has_split is None:
            self.has_split = value is not None
        if (value is not None) != self.has_split:
            found, wanted = ("a", "no") if value is not None else ("no", "a")
            raise BadRow(
                f"the row has {found} split, the first row has {wanted} split. Give all rows a split, or none."
            )
        return UNSPLIT if value is None else split_code(value)

    def _is_list(self, value: Any, column: str) -> bool:
        lists = isinstance(value, list)
        if self.lists is None and isinstance(value, str | int | list):
            self.lists = lists
            self._refuse_counts()
        if lists != self.lists and isinstance(value, str | list):
            wanted = "a list of labels" if self.lists else "one label"
            raise BadRow(f"{column} is {shown(value)}, but the first row holds {wanted}. Keep to one form.")
        return lists

    def _refuse_counts(self) -> None:
        if self.lists and (self.min_count > 1 or self.columns.count):
            raise DatasetError(
                "--min-count and --count-column are for (query, label) pairs, and this source lists labels by query. "
                "Leave them out."
            )

    def _keys(self, value: Any, name: str) -> list[str]:
        if not isinstance(value, list):
            raise BadRow(f"{name} is {shown(value)}, not a list of labels. Give it a list or remove the row.")
        return [self._key(item, f"{name}[{position}]") for position, item in enumerate(value)]

    def _key(self, value: Any, name: str) -> str:
        # a number can name a label of a table; as a label's text it is more likely the wrong column
        return (key_of if self.catalogue.closed else text_of)(value, name, self.limit)


def _cell(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise BadRow(f"there is no {name!r}; the row has {', '.join(map(repr, record)) or 'nothing'}. Add it.")
    return record[name]


def read_source(path: Path, reader: Reader, problems: Problems, meter: Meter) -> Raw:
    """All rows of a JSON Lines, CSV, TSV or Parquet file; bad ones go to `problems`.

    Raises DatasetError when the file or its columns will not do at all.
    """
    names, located = records(path, meter)
    if kind(path) not in (".jsonl", ".ndjson"):
        _require_columns(path, names, reader.columns)
    where = None
    for where, record in located:
        with problems.at(where):
            if isinstance(record, BadRow):
                raise record
            reader.take(record)
    if where is None:
        raise DatasetError(f"{path} has a header and no rows. Give a file with rows.")
    if not reader.lists:
        reader.pairs.into_rows(reader.rows, reader.min_count, reader.report)
    return raw_of(reader.catalogue, reader.rows)


def _require_columns(path: Path, names: list[str], columns: Columns) -> None:
    label = columns.label or ("labels" if "labels" in names else "label")
    wanted = {"--query-column": columns.query or "query", "--label-column": label}
    optional = {"--split-column": columns.split, "--count-column": columns.count}
    for option, name in [*wanted.items(), *optional.items()]:
        if name is not None and name not in names:
            raise DatasetError(f"{path} has no column {name!r}. It has: {', '.join(names)}. Choose with {option}.")


def raw_of(catalogue: Catalogue, rows: Rows) -> Raw:
    """Rows and the labels they name, as columns."""
    n_labels = len(catalogue.ids)
    labels = rows.labels.finish()
    is_label_L = np.zeros(n_labels, np.bool_)
    is_label_L[labels.values] = True
    is_label_L[: catalogue.listed] = True
    return Raw(
        label_ids=pa.array(catalogue.ids, pa.string()),
        label_texts=pa.array(catalogue.texts, pa.string()),
        attributes={name: _padded(column, n_labels) for name, column in catalogue.attributes.items()},
        is_label_L=is_label_L,
        ids=rows.ids.finish(),
        texts=rows.texts.finish(),
        split_R=np.array(rows.split, np.int8),
        hash_R2=np.array(rows.hashes, np.uint64).reshape(-1, 2),
        labels=labels,
        exclude=rows.exclude.finish(),
    )


def _padded(column: Any, length: int) -> Any:
    return pa.concat_arrays([column, pa.nulls(length - len(column), column.type)])
