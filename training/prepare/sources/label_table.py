"""Read the label table of a source (`--labels`): ids, texts and attributes of labels.

Its key column has the values that the source uses to name labels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import DatasetError, one_line
from retrieval.tables.columns import Attribute, Identifier, Parser
from retrieval.tables.json_lines import JsonPart
from retrieval.tables.notes import Notes
from retrieval.tables.opening import NoReadingProgress, ReadingProgress
from retrieval.tables.table import Table
from retrieval.tables.values import preview
from training.prepare.bad_rows import BadRows
from training.prepare.sources.attributes import attribute_column

RESERVED = ("id", "text")
_CHOOSE = {
    "--label-text": "Name the column of the labels' text with --label-text.",
    "--label-key": "Name the column that the source refers to with --label-key, and the text column with --label-text.",
}


@dataclass
class SourceLabels:
    """The labels of a label table. `closed`: keys are ids, so an unknown key has no text."""

    number_of_key: dict[str, int] = field(default_factory=dict)
    ids: Any = field(default_factory=lambda: pa.chunked_array([], pa.large_string()))
    texts: Any = field(default_factory=lambda: pa.chunked_array([], pa.large_string()))
    attributes: dict[str, Any] = field(default_factory=dict)
    closed: bool = False
    key_name: str = ""  # column and file of the keys, for messages
    text_column: str = "text"
    read: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def listed(self) -> int:
        """Return the number of labels."""
        return len(self.number_of_key)

    def keys(self) -> Any:
        """Return the keys as an Arrow array, in the order of the labels."""
        return pa.array(list(self.number_of_key), pa.large_string())

    def unknown(self, key: str) -> str:
        """Return the message for a key that the table does not have."""
        integer = key.removesuffix(".0").lstrip("0") or "0"  # the same number in another spelling: 7 for 7.0 or 007
        spellings = (integer, f"{integer}.0")
        similar = next((one for one in spellings if one != key and one in self.number_of_key), None)
        hint = "" if similar is None else f"It has {preview(similar)}: write both the same way. "
        return (
            f"label {preview(key)} is not in {self.key_name}. {hint}Add it there, "
            f"or match labels by their text with --label-key {self.text_column}."
        )

    def unknown_in_lists(self, column: Any) -> dict[int, str]:
        """Return rows of an Arrow list column with a key that the table does not have, with the message about it."""
        if not self.closed:
            return {}
        flat, parents = pc.list_flatten(column), pc.list_parent_indices(column)
        is_unknown = pc.invert(pc.is_in(flat, value_set=self.keys()))
        rows, keys = parents.filter(is_unknown).to_pylist(), flat.filter(is_unknown).to_pylist()
        return {row: self.unknown(key) for row, key in zip(reversed(rows), reversed(keys), strict=True)}


def read_label_table(
    table: Table, key: str | None, text: str | None, max_characters: int, bad_rows: BadRows, notes: Notes,
    progress: ReadingProgress,
) -> SourceLabels:  # fmt: skip
    """Read a label table; bad rows are collected in `bad_rows`. Raises DatasetError for missing or unusable columns.

    key, text: column names. By default the text is in `text` if it exists, else in the key column; the key is in `id`
    if it exists, else in the text column. A key column other than the text is the labels' id.
    """
    if table.is_empty:
        raise DatasetError(f"{table.path} is empty. Give a table with the columns id and text, or leave --labels out.")
    chosen_key = key
    key = key or ("id" if "id" in table.names else text or "text")
    text = text or ("text" if "text" in table.names else key)
    identity = "id" if "id" in table.names else key
    for option, name in (("--label-text", text), ("--label-key", key)):
        if name not in table.names:
            has = ", ".join(table.names)
            raise DatasetError(f"{table.path} has no column {name!r}. It has: {has}. {_CHOOSE[option]}")
    attributes = [name for name in _all_names(table) if name not in {key, text, *RESERVED, *table.path_columns}]
    for name in dict.fromkeys([text, key, identity, *attributes]):
        table.require(name, "--label-text" if name == text else "--label-key")
    labels = SourceLabels(
        closed=key != text,
        key_name=f"column {key} of {table.files[0].name if len(table.files) == 1 else table.name}",
        text_column=text,
    )
    _LabelTableReader(labels, table, (key, text, identity), attributes, max_characters).read(bad_rows, progress)
    if chosen_key and key == text and attributes:  # a product's number would be learned as its text
        notes.add("labels_with_key_as_text", labels.listed, key)
    notes.update(table.notes())
    return labels


class _LabelTableReader:
    """One pass over a label table."""

    def __init__(
        self, labels: SourceLabels, table: Table, columns: tuple[str, str, str], attributes: list[str],
        max_characters: int,
    ) -> None:  # fmt: skip
        """`columns`: names of the key, text and id columns."""
        self._labels, self._table, self._columns, self._attributes = labels, table, columns, attributes
        self._parsers: dict[str, Parser] = {name: Identifier(limit=max_characters) for name in columns}
        self._parsers |= {name: Attribute() for name in attributes}
        self._known_ids: set[str] = set()
        self._rows: list[Any] = []

    def read(self, bad_rows: BadRows, progress: ReadingProgress) -> None:
        """Add all labels and attributes."""
        blank = bad = 0
        for part in self._table.parts:
            for batch in part.batches(self._parsers, progress):
                messages = [f"{where}: {message}" for where, message in batch.bad]
                messages += [f"{part.place_text(place)}: {message}" for place, message in self._add(batch.rows)]
                bad_rows.add(messages, len(messages))
                self._labels.read += batch.read
                blank, bad = blank + batch.blank, bad + len(messages)
        self._labels.skipped = {"blank_line": blank, "bad_row": bad}
        _, text, identity = self._columns
        self._labels.ids = _joined([rows[identity] for rows in self._rows])
        self._labels.texts = _joined([rows[text] for rows in self._rows])
        rows = _one_schema(self._rows, self._table.path)
        for name in self._attributes:
            self._labels.attributes[name] = attribute_column(self._table.path, name, rows[name])

    def _add(self, rows: Any) -> list[tuple[int, str]]:
        """Add accepted rows; return place and message of those that repeat a key or an id."""
        key_name, _, id_name = self._columns
        bad: list[tuple[int, str]] = []
        keep = np.ones(rows.num_rows, np.bool_)
        number_of_key, known_ids = self._labels.number_of_key, self._known_ids
        columns = (rows[name].to_pylist() for name in (key_name, id_name, "place"))
        for row, (key, identity, place) in enumerate(zip(*columns, strict=True)):
            if key in number_of_key:
                bad.append((place, f"{key_name} {preview(key)} is in an earlier row too. Remove one of them."))
            elif identity in known_ids:
                bad.append((place, f"id {preview(identity)} is in an earlier row too. Give each label its own id."))
            else:
                number_of_key[key] = len(number_of_key)
                known_ids.add(identity)
                continue
            keep[row] = False
        self._rows.append(rows.filter(pa.array(keep)))
        return bad


def _all_names(table: Table) -> list[str]:
    """Return the names of all columns; in JSON Lines, the keys of all rows. Raises DatasetError for an empty key."""
    names = dict.fromkeys(table.names)
    for part in table.parts:
        if isinstance(part, JsonPart):
            for _, record in part.records([], NoReadingProgress()):
                names |= dict.fromkeys(record) if isinstance(record, dict) else {}
    if "" in names and not table.has_header:
        raise DatasetError(f"{table.path} has a key that is empty. Give it a name or remove it.")
    return [name for name in names if name]


def _one_schema(tables: list[Any], path: Any) -> Any:
    """Join tables whose columns may have different types, such as integers of 32 and of 64 bits."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: rows have values of different types in a column ({one_line(error)}). Use one type."
        ) from error


def _joined(columns: list[Any]) -> Any:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.large_string())
