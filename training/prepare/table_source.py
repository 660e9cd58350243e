"""Read queries and labels from JSON Lines, CSV, TSV and Parquet: a row per query, or a row per click.

If the label column has a list, the row is a query with all its labels. If it has a text, the row is one (query, label)
pair; pairs of one query are grouped. The first row decides. Among lists, a single label is a list of one; among pairs,
a list is a bad row.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.errors import DatasetError
from retrieval.tables.notes import Notes
from retrieval.tables.opening import ReadingProgress
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow, Record, parse_id, parse_labels, parse_list_cell, parse_text, preview
from training.prepare.input_rows import InputRows, parse_count, parse_split
from training.prepare.label_table import SourceLabels
from training.prepare.source_data import UNSPLIT, ClickPairs, QueryRows, SourceData, text_column


@dataclass(frozen=True)
class ColumnNames:
    """Names of columns; None: `query`, `labels` or `label`, `split` if it exists, and no counts."""

    query: str | None = None
    label: str | None = None
    split: str | None = None
    count: str | None = None


@dataclass
class TableReader:
    """Collects the rows of a table and numbers their labels."""

    columns: ColumnNames
    max_characters: int
    labels: SourceLabels
    notes: Notes
    input_rows: InputRows
    min_count: int = 0
    rows: QueryRows = field(default_factory=QueryRows)
    pairs: ClickPairs = field(default_factory=ClickPairs)
    lists: bool | None = None  # whether rows have lists of labels; None before the first row
    has_split: bool | None = None

    def add(self, record: Record) -> None:
        """Add a row. Raises BadRow for an invalid one."""
        query = parse_text(_cell(record, self.columns.query or "query"), "query", self.max_characters)
        label_column = self.columns.label or ("labels" if "labels" in record else "label")
        value = _cell(record, label_column)
        if label_column == "labels":
            value = parse_list_cell(value)
        if self._is_list(value, label_column):
            values = value if isinstance(value, list) else [value]
            self._add_row(record, query, parse_labels(values, label_column, self._parse_key))
        else:
            self._add_pair(record, query, self._parse_key(value, label_column))
        if len(record) > 2:
            used = {self.columns.query or "query", label_column, self.columns.split or "split", self.columns.count}
            for name in record.keys() - used - ({"id", "exclude"} if self.lists else set()):
                self.notes.add("unused_columns", 1, name)

    def _add_pair(self, record: Record, query: str, key: str) -> None:
        column = self.columns.count
        count = 1 if column is None else parse_count(_cell(record, column), column)
        split, label = self._split(record), self.labels.number(key)
        if count == 0 and self.min_count > 0:
            self.input_rows.skipped["count_zero"] += 1
        else:
            self.pairs.append(split, query, label, count)

    def _add_row(self, record: Record, query: str, keys: list[str]) -> None:
        value = record.get("id")
        row_id = None if value is None else parse_id(value, "id", self.max_characters)
        excluded_keys = parse_labels(parse_list_cell(record.get("exclude")) or [], "exclude", self._parse_key)
        excluded = [self.labels.number_if_known(key) for key in excluded_keys]
        known = [number for number in excluded if number is not None]
        self.notes.add("unknown_excluded_labels", len(excluded) - len(known))
        self.rows.append(self._split(record), row_id, query, [self.labels.number(key) for key in keys], known)

    def _split(self, record: Record) -> int:
        column = self.columns.split or "split"
        value = record.get(column) if self.columns.split is None else _cell(record, column)
        if self.has_split is None:
            self.has_split = value is not None
        if (value is not None) != self.has_split:
            this, first = ("a", "no") if value is not None else ("no", "a")
            raise BadRow(
                f"the row has {this} split, but the first row has {first} split. Give all rows a split, or none."
            )
        return UNSPLIT if value is None else parse_split(value)

    def _is_list(self, value: Any, column: str) -> bool:
        """Return whether the row has a list of labels. Raises BadRow for a list if the first row has one label."""
        if value is None:
            raise BadRow(f"{column} is null, not text. Write text or remove the row.")
        if isinstance(value, dict):
            return False  # an invalid label; it must not decide how later rows are read
        if self.lists is None:
            self.lists = isinstance(value, list)
            self._refuse_counts_of_lists()
        if isinstance(value, list) and not self.lists:
            raise BadRow(f"{column} is {preview(value)}, but the first row has one label. Write one label per row.")
        return self.lists

    def _refuse_counts_of_lists(self) -> None:
        if self.lists and (self.min_count > 1 or self.columns.count):
            raise DatasetError(
                "--min-count and --count-column are for rows with one (query, label) pair, but this source has lists "
                "of labels. Leave them out."
            )

    def _parse_key(self, value: Any, name: str) -> str:
        # a number may be the id of a label; as a label's text it is more likely the wrong column
        return (parse_id if self.labels.closed else parse_text)(value, name, self.max_characters)


def _cell(record: Record, name: str) -> Any:
    if name not in record:
        raise BadRow(f"{name!r} is missing; the row has {', '.join(map(repr, record)) or 'nothing'}. Add it.")
    return record[name]


def read_table_source(table: Table, reader: TableReader, progress: ReadingProgress) -> SourceData:
    """Read all rows of a table; bad rows are logged in the reader's input.

    Raises DatasetError for a table without rows, and for missing columns.
    """
    columns = _required_columns(table, reader.columns)
    rows = reader.input_rows
    for where, record in rows.filled(table.rows(columns, progress)):
        rows.attempt(where, record, reader.add)
    if rows.read == rows.skipped["blank_line"]:
        content = "has only blank lines" if rows.read else "has a header but no rows" if table.names else "has no rows"
        raise DatasetError(f"{table.path} {content}. Give a file with rows.")
    if not reader.lists:
        reader.pairs.add_to(reader.rows, reader.min_count, reader.notes, rows.skipped)
    if table.has_header:
        for name in table.names:
            if name not in columns:
                reader.notes.add("unused_columns", rows.read, name)
    reader.notes.update(table.notes())
    return build_source_data(reader.labels, reader.rows, from_pairs=not reader.lists)


def _required_columns(table: Table, columns: ColumnNames) -> list[str]:
    """Return the columns to read. Raises TableError if one is missing or occurs twice."""
    if not table.names:
        return []
    label = columns.label or ("labels" if "labels" in table.names else "label")
    names = {
        "--query-column": columns.query or "query",
        "--label-column": label,
        "--split-column": columns.split or ("split" if "split" in table.names else None),
        "--count-column": columns.count,
    }
    options = {name: option for option, name in names.items() if name is not None}
    if table.may_hold_lists(label):
        options |= {name: "another name" for name in ("id", "exclude") if name in table.names}
    for name, option in options.items():
        table.require(name, option)
    return list(options)


def build_source_data(labels: SourceLabels, rows: QueryRows, *, from_pairs: bool) -> SourceData:
    """Return rows and labels as columns."""
    n_labels = len(labels.ids)
    labels_R = rows.labels.finish()
    is_label_L = np.zeros(n_labels, np.bool_)
    is_label_L[labels_R.values] = True
    is_label_L[: labels.listed] = True
    return SourceData(
        label_ids=text_column(labels.ids),
        label_texts=text_column(labels.texts),
        attributes={name: _padded(column, n_labels) for name, column in labels.attributes.items()},
        is_label_L=is_label_L,
        ids=rows.ids.finish(),
        texts=rows.texts.finish(),
        split_R=np.array(rows.split, np.int8),
        hash_R2=np.array(rows.hashes, np.uint64).reshape(-1, 2),
        spelling_R=np.array(rows.spellings, np.int64),
        labels=labels_R,
        exclude=rows.exclude.finish(),
        listed=labels.listed,
        from_pairs=from_pairs,
    )


def _padded(column: Any, length: int) -> Any:
    return pa.chunked_array([*column.chunks, pa.nulls(length - len(column), column.type)], column.type)
