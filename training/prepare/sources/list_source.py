"""Read a table with a row per query and lists of labels into the rows and labels of a dataset."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import DatasetError
from retrieval.tables.columns import Identifier, IdentifierList, Parser, Text, TextList
from retrieval.tables.json_lines import JsonPart
from retrieval.tables.notes import Notes
from retrieval.tables.table import Table
from retrieval.tables.values import preview
from training.data.ragged import Ragged
from training.prepare.bad_rows import BadRows
from training.prepare.settings import PrepareSettings
from training.prepare.source_data import UNSPLIT, Positives, SourceData, padded, text_column
from training.prepare.sources.columns import Columns
from training.prepare.sources.label_table import SourceLabels
from training.prepare.sources.split_parser import SplitForm, SplitParser
from training.prepare.split_hash import text_hashes

NO_LABELS = "{} is null or missing. Write a list of labels or remove the row."
OPTIONAL_COLUMNS = ID, EXCLUDE = "id", "exclude"


class ListReader:
    """Reads rows with lists of labels; counts the rows."""

    def __init__(self, columns: Columns, settings: PrepareSettings, labels: SourceLabels, bad_rows: BadRows) -> None:
        """Raises DatasetError for options that apply to click logs only."""
        _refuse_log_options(settings, columns)
        self._columns, self._labels, self._bad_rows = columns, labels, bad_rows
        # A line of JSON may name its label `label` where others have `labels`.
        self._other_label = "label" if columns.label == "labels" and not settings.label_column else None
        self._parsers = _parsers(columns, self._other_label, settings.max_characters, labels)
        self._split_form = SplitForm()
        self._ids: set[str] = set()
        self._rows: list[Any] = []
        self.read = 0
        self.skipped = Counter[str]()

    def read_all(self, table: Table, progress: Any, notes: Notes) -> SourceData:
        """Read all rows of a table. Raises DatasetError for a table without rows and for bad rows, unless skipped."""
        for part in table.parts:
            parsers = {name: parser for name, parser in self._parsers.items() if name != self._other_label}
            for batch in part.batches(self._parsers if isinstance(part, JsonPart) else parsers, progress):
                self.read += batch.read
                messages = [f"{where}: {message}" for where, message in batch.bad]
                messages += [f"{part.place_text(place)}: {message}" for place, message in self._add(batch.rows)]
                self._bad_rows.add(messages, len(messages))
                self.skipped.update(blank_line=batch.blank, bad_row=len(messages))
        if self.read == self.skipped["blank_line"]:
            content = "has only blank lines" if self.read else "has no rows"
            raise DatasetError(f"{table.path} {content}. Give a file with rows.")
        self._bad_rows.raise_if_any(str(table.path))
        return self._source_data(notes)

    def _add(self, rows: Any) -> list[tuple[int, str]]:
        """Add accepted rows; return place and message of those that are bad because of earlier rows."""
        column = self._columns
        split = rows[column.split] if column.split else pa.nulls(rows.num_rows, pa.int8())
        differs_N, message = self._split_form.differing(split)
        bad: dict[int, str] = dict.fromkeys(np.flatnonzero(differs_N).tolist(), message)
        labels = rows[column.label]
        if self._other_label in rows.column_names:
            labels = pc.coalesce(labels, rows[self._other_label])
        bad |= dict.fromkeys(np.flatnonzero(np.asarray(labels.is_null())).tolist(), NO_LABELS.format(column.label))
        bad |= self._labels.unknown_in_lists(labels)
        ids = self._new_ids(rows[ID].to_pylist(), bad)
        keep = pa.array([row not in bad for row in range(rows.num_rows)], pa.bool_())
        columns = {
            "id": ids, "text": rows[column.query], "labels": labels, "exclude": rows[EXCLUDE],
            "split": split,
        }  # fmt: skip
        self._rows.append(pa.table(columns).filter(keep))
        places = rows["place"].to_pylist() if bad else []
        return [(places[row], bad[row]) for row in sorted(bad)]

    def _new_ids(self, ids: list[str | None], bad: dict[int, str]) -> Any:
        """Return the id of each row, by default its number; a row with the id of an earlier row is bad."""
        names: list[str | None] = []
        for row, identity in enumerate(ids):
            name = str(len(self._ids) + 1) if identity is None else identity
            if row not in bad and name in self._ids:
                bad[row] = f"id {preview(name)} is the id of an earlier row too. Give each row its own id."
            if row not in bad:
                self._ids.add(name)
            names.append(name)
        return pa.array(names, pa.large_string())

    def _source_data(self, notes: Notes) -> SourceData:
        rows = pa.concat_tables(self._rows)
        labels, exclude, new_labels = _numbered(rows["labels"], rows["exclude"], self._labels, notes)
        label_ids = pa.chunked_array([*text_column(self._labels.ids).chunks, *new_labels.chunks])
        label_texts = pa.chunked_array([*text_column(self._labels.texts).chunks, *new_labels.chunks])
        n_labels = len(label_ids)
        is_label_L = np.zeros(n_labels, np.bool_)
        is_label_L[labels.values] = True
        is_label_L[: self._labels.listed] = True
        texts = text_column(rows["text"])
        return SourceData(
            label_ids=label_ids,
            label_texts=label_texts,
            label_columns={name: padded(column, n_labels) for name, column in self._labels.attributes.items()},
            is_label_L=is_label_L,
            ids=text_column(rows["id"]),
            texts=texts,
            split_R=np.asarray(rows["split"].fill_null(UNSPLIT)).astype(np.int8),
            hash_R2=text_hashes(texts),
            positives=Positives(labels),
            exclude=exclude,
            listed=self._labels.listed,
        )


def _parsers(columns: Columns, other: str | None, limit: int, labels: SourceLabels) -> dict[str, Parser]:
    lists = IdentifierList if labels.closed else TextList
    label = lists(required=False, limit=limit, allow_single=True)
    parsers: dict[str, Parser] = {
        columns.query: Text(limit=limit),
        columns.label: label,
        **({other: label} if other else {}),
        ID: Identifier(required=False, limit=limit),
        EXCLUDE: lists(required=False, limit=limit),
    }
    return parsers | ({columns.split: SplitParser(required=False)} if columns.split else {})


def _numbered(labels: Any, exclude: Any, listed: SourceLabels, notes: Notes) -> tuple[Ragged, Ragged, Any]:
    """Return the label numbers of Arrow lists of keys, without repetitions within a row, and the texts of new labels.

    New labels are numbered in the order of the rows, after those of the label table; the excluded labels of a row come
    before its labels. A label table with ids has all labels; others are left out of `exclude` and counted.
    """
    lists = [_flat(exclude), _flat(labels)]
    row_V = np.concatenate([np.repeat(np.arange(len(lengths)), lengths) for _, lengths in lists])
    order_V = np.argsort(row_V, kind="stable")
    keys = pa.chunked_array([*lists[0][0].chunks, *lists[1][0].chunks], pa.large_string()).combine_chunks()
    number_V = np.asarray(pc.fill_null(pc.index_in(keys, value_set=listed.keys()), -1)).astype(np.int64)
    new_labels = pa.chunked_array([], pa.large_string())
    if not listed.closed:
        number_V, new_labels = _number_new(keys, number_V, order_V, listed.listed)
    n_excluded = int(lists[0][1].sum())
    excluded = Ragged.from_lengths(number_V[:n_excluded].astype(np.int32), lists[0][1])
    notes.add("unknown_excluded_labels", int(np.count_nonzero(excluded.values < 0)))
    excluded = excluded.keep(excluded.values >= 0)
    positives = Ragged.from_lengths(number_V[n_excluded:].astype(np.int32), lists[1][1])
    return positives.without_repeats(), excluded.without_repeats(), new_labels


def _number_new(
    keys: Any, number_V: npt.NDArray[np.int64], order_V: npt.NDArray[np.int64], first: int
) -> tuple[npt.NDArray[np.int64], Any]:
    """Number the keys that have no number yet, from `first`, in the order `order_V`; also return their texts."""
    new_N = order_V[number_V[order_V] < 0]
    encoded = keys.take(pa.array(new_N)).dictionary_encode()
    number_V[new_N] = first + np.asarray(encoded.indices)
    return number_V, pa.chunked_array([encoded.dictionary])


def _flat(column: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the values of an Arrow list column and the length of each list; null is an empty list."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
    return pa.chunked_array(pc.list_flatten(column)), lengths


def _refuse_log_options(settings: PrepareSettings, columns: Columns) -> None:
    options = {
        "--min-clicks": settings.min_clicks > 1,
        "--clicks-column": settings.clicks_column,
        "--test-from": settings.test_from,
        "--test-days": settings.test_days,
        "--half-life-days": settings.half_life_days,
        "--position-column": settings.position_column,
        "--label-text-column": settings.label_text_column,
    }
    for option, value in options.items():
        if value:
            raise DatasetError(
                f"{option} is for rows with one (query, label) pair, but this source has lists of labels "
                f"({columns.label}). Leave it out."
            )
