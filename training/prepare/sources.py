"""Queries with their labels, from JSON Lines, CSV, TSV and Parquet: a row a query, or a row a click.

A record whose label column holds a list is a query with all its labels; one whose label column holds a text is one
(query, label) pair, and pairs of one query are gathered. The first row decides the form. Among lists, a single label is
a list of one; among pairs, a list is a bad row.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.errors import DatasetError
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow, id_of, labels_of, shown, text_of, written_list
from training.prepare.files import Meter
from training.prepare.intake import UNSPLIT, Pairs, Raw, Rows, text_column
from training.prepare.label_table import Catalogue
from training.prepare.row_counts import InputRows, count_of, split_code


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
    input: InputRows
    min_count: int = 0
    rows: Rows = field(default_factory=Rows)
    pairs: Pairs = field(default_factory=Pairs)
    lists: bool | None = None
    has_split: bool | None = None
    unused: Counter[str] = field(default_factory=Counter)

    def take(self, record: Mapping[str, Any]) -> None:
        """Add one record; BadRow when it cannot be used."""
        query = text_of(_cell(record, self.columns.query or "query"), "query", self.limit)
        label_column = self.columns.label or ("labels" if "labels" in record else "label")
        value = _cell(record, label_column)
        if label_column == "labels":
            value = written_list(value)
        if self._is_list(value, label_column):
            listed = value if isinstance(value, list) else [value]
            self._take_row(record, query, labels_of(listed, label_column, self._key))
        else:
            self._take_pair(record, query, self._key(value, label_column))
        if len(record) > 2:
            used = {self.columns.query or "query", label_column, self.columns.split or "split", self.columns.count}
            for name in record.keys() - used - ({"id", "exclude"} if self.lists else set()):
                self.unused[name] += 1

    def _take_pair(self, record: Mapping[str, Any], query: str, key: str) -> None:
        times = 1 if self.columns.count is None else count_of(_cell(record, self.columns.count), self.columns.count)
        split, label = self._split(record), self.catalogue.row(key)
        if times == 0 and self.min_count > 0:
            self.input.skipped["count_zero"] += 1
        else:
            self.pairs.append(split, query, label, times)

    def _take_row(self, record: Mapping[str, Any], query: str, labels: list[str]) -> None:
        row_id = record.get("id")
        name = None if row_id is None else id_of(row_id, "id", self.limit)
        exclude = labels_of(written_list(record.get("exclude")) or [], "exclude", self._key)
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
        """Tell whether the row has a list of labels. Raises BadRow for a list if the first row has one label."""
        if value is None:
            raise BadRow(f"{column} is null, not text. Give it text or remove the row.")
        if isinstance(value, dict):
            return False  # not a label; it must not decide the form
        if self.lists is None:
            self.lists = isinstance(value, list)
            self._refuse_counts()
        if isinstance(value, list) and not self.lists:
            raise BadRow(f"{column} is {shown(value)}, but the first row holds one label. Give each label its own row.")
        return self.lists

    def _refuse_counts(self) -> None:
        if self.lists and (self.min_count > 1 or self.columns.count):
            raise DatasetError(
                "--min-count and --count-column are for (query, label) pairs, and this source lists labels by query. "
                "Leave them out."
            )

    def _key(self, value: Any, name: str) -> str:
        # a number can name a label of a table; as a label's text it is more likely the wrong column
        return (id_of if self.catalogue.closed else text_of)(value, name, self.limit)


def _cell(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise BadRow(f"there is no {name!r}; the row has {', '.join(map(repr, record)) or 'nothing'}. Add it.")
    return record[name]


def read_source(table: Table, reader: Reader, meter: Meter) -> Raw:
    """Read all rows of a table; bad rows are noted in the reader's input.

    Raises DatasetError for a table without rows, and for missing columns.
    """
    columns = _required_columns(table, reader.columns)
    rows = reader.input
    for where, record in rows.filled(table.rows(columns, meter)):
        rows.attempt(where, record, reader.take)
    if rows.read == rows.skipped["blank_line"]:
        what = "holds only blank lines" if rows.read else "has a header and no rows" if table.names else "has no rows"
        raise DatasetError(f"{table.path} {what}. Give a file with rows.")
    if not reader.lists:
        reader.pairs.into_rows(reader.rows, reader.min_count, reader.report, rows.skipped)
    _report_unused(table, columns, reader)
    reader.report.update(table.observations())
    return raw_of(reader.catalogue, reader.rows, from_pairs=not reader.lists)


def _required_columns(table: Table, columns: Columns) -> list[str]:
    """Return the columns to read. Raises TableError if one is missing or there twice."""
    if not table.names:
        return []
    label = columns.label or ("labels" if "labels" in table.names else "label")
    named = {
        "--query-column": columns.query or "query",
        "--label-column": label,
        "--split-column": columns.split or ("split" if "split" in table.names else None),
        "--count-column": columns.count,
    }
    wanted = {name: option for option, name in named.items() if name is not None}
    if table.may_hold_lists(label):
        wanted |= {name: "another name" for name in ("id", "exclude") if name in table.names}
    for name, option in wanted.items():
        table.require(name, option)
    return list(wanted)


def _report_unused(table: Table, columns: list[str], reader: Reader) -> None:
    unused = dict(reader.unused)
    if table.has_header:
        unused |= dict.fromkeys((name for name in table.names if name not in columns), reader.input.read)
    for name, count in unused.items():
        reader.report[f"rows with the column {name!r}, which is not used"] += count


def raw_of(catalogue: Catalogue, rows: Rows, *, from_pairs: bool) -> Raw:
    """Rows and the labels they name, as columns."""
    n_labels = len(catalogue.ids)
    labels = rows.labels.finish()
    is_label_L = np.zeros(n_labels, np.bool_)
    is_label_L[labels.values] = True
    is_label_L[: catalogue.listed] = True
    return Raw(
        label_ids=text_column(catalogue.ids),
        label_texts=text_column(catalogue.texts),
        attributes={name: _padded(column, n_labels) for name, column in catalogue.attributes.items()},
        is_label_L=is_label_L,
        ids=rows.ids.finish(),
        texts=rows.texts.finish(),
        split_R=np.array(rows.split, np.int8),
        hash_R2=np.array(rows.hashes, np.uint64).reshape(-1, 2),
        spelling_R=np.array(rows.spellings, np.int64),
        labels=labels,
        exclude=rows.exclude.finish(),
        listed=catalogue.listed,
        from_pairs=from_pairs,
    )


def _padded(column: Any, length: int) -> Any:
    return pa.chunked_array([*column.chunks, pa.nulls(length - len(column), column.type)], column.type)
