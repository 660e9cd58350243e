"""Read the label table of a source (`--labels`): ids, texts and attributes of labels.

Its key column has the values that the source uses to name labels.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.errors import DatasetError
from retrieval.tables.files import PARQUET
from retrieval.tables.notes import Notes
from retrieval.tables.opening import ReadingProgress
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow, Record, parse_id, preview, refuse_surrogates
from training.prepare.attributes import attribute_column
from training.prepare.input_rows import InputRows

RESERVED = ("id", "text")
_CHOOSE = {
    "--label-text": "Name the column of the labels' text with --label-text.",
    "--label-key": "Name the column that the source refers to with --label-key, and the text column with --label-text.",
}


@dataclass
class SourceLabels:
    """Labels by key, numbered in order of occurrence. `closed`: keys are ids, so an unknown key has no text."""

    number_of_key: dict[str, int] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    closed: bool = False
    key_name: str = ""  # column and file of the keys, for messages
    text_column: str = "text"
    listed: int = 0  # labels of the label table; they come first

    def number(self, key: str) -> int:
        """Return the number of the label with this key; a new text becomes a label. Raises BadRow for an unknown id."""
        number = self.number_of_key.get(key)
        if number is None:
            if self.closed:
                raise BadRow(
                    f"label {preview(key)} is not in {self.key_name}. {self._similar(key)}Add it there, "
                    f"or match labels by their text with --label-key {self.text_column}."
                )
            number = self.number_of_key[key] = len(self.ids)
            self.ids.append(key)
            self.texts.append(key)
        return number

    def number_if_known(self, key: str) -> int | None:
        """Return the number of the label with this key; None for an unknown id."""
        return self.number_of_key.get(key) if self.closed else self.number(key)

    def _similar(self, key: str) -> str:
        """Return a hint at an id that is the same number in another spelling, such as 7 for 7.0 or 007."""
        integer = key.removesuffix(".0").lstrip("0") or "0"
        spellings = (integer, f"{integer}.0")
        similar = next((one for one in spellings if one != key and one in self.number_of_key), None)
        return "" if similar is None else f"It has {preview(similar)}: write both the same way. "


def read_label_table(
    path: Path, key: str | None, text: str | None, max_characters: int, rows: InputRows, notes: Notes,
    progress: ReadingProgress,
) -> SourceLabels:  # fmt: skip
    """Read a `--labels` table; bad rows are logged in `rows`. Raises DatasetError for missing or unusable columns.

    key, text: column names. By default the text is in `text` if it exists, else in the key column; the key is in `id`
    if it exists, else in the text column. A key column other than the text is the labels' id.
    """
    table = Table(path)
    if table.is_empty:
        raise DatasetError(f"{path} is empty. Give a table with the columns id and text, or leave --labels out.")
    chosen_key = key
    key = key or ("id" if "id" in table.names else text or "text")
    text = text or ("text" if "text" in table.names else key)
    identity = "id" if "id" in table.names else key
    for option, name in (("--label-text", text), ("--label-key", key)):
        if name not in table.names:
            raise DatasetError(f"{path} has no column {name!r}. It has: {', '.join(table.names)}. {_CHOOSE[option]}")
    attributes = [name for name in table.names if name not in {key, text, *RESERVED}]
    for name in dict.fromkeys([text, key, identity, *attributes]):
        table.require(name, "--label-text" if name == text else "--label-key")
    labels = SourceLabels(closed=key != text, key_name=f"column {key} of {path.name}", text_column=text)
    _LabelTableReader(labels, table, (key, text, identity), attributes, max_characters).read(rows, progress)
    labels.listed = len(labels.ids)
    if chosen_key and key == text and attributes:  # a product's number would be learned as its text
        notes.add("labels_with_key_as_text", labels.listed, key)
    notes.update(table.notes())
    return labels


class _LabelTableReader:
    """One pass over a label table. Attributes in Parquet stay in Arrow; in other tables they are Python values."""

    def __init__(
        self, labels: SourceLabels, table: Table, columns: tuple[str, str, str], attributes: list[str],
        max_characters: int,
    ) -> None:  # fmt: skip
        """`columns`: names of the key, text and id columns."""
        self.labels, self.table, self.columns, self.max_characters = labels, table, columns, max_characters
        self.attributes = attributes
        self.in_arrow = table.kind == PARQUET
        self.cells: dict[str, list[Any]] = {} if self.in_arrow else {name: [] for name in attributes}
        self.row, self.accepted_rows = -1, list[int]()
        self.known_ids: set[str] = set()

    def read(self, rows: InputRows, progress: ReadingProgress) -> None:
        """Add all labels and attributes."""
        columns = list(dict.fromkeys([*self.columns, *self.cells]))
        for where, record in rows.filled(self.table.rows(columns, progress)):
            self.row += 1
            rows.attempt(where, record, self._add_row)
        path, attributes = self.table.path, self.labels.attributes
        if self.in_arrow and self.attributes:
            accepted_N = np.zeros(self.row + 1, np.bool_)
            accepted_N[self.accepted_rows] = True
            accepted, table = pa.array(accepted_N), self.table.arrow(self.attributes)
            for name in self.attributes:  # not take(), which joins chunks and fails beyond 2 GB
                attributes[name] = attribute_column(path, name, table[name]).filter(accepted)
        else:
            attributes |= {name: attribute_column(path, name, cells) for name, cells in self.cells.items()}

    def _add_row(self, record: Record) -> None:
        if not self.table.has_header and (more := record.keys() - {*self.columns, *self.cells, *RESERVED}):
            if "" in more:
                raise BadRow("a key is empty. Give it a name or remove it.")
            raise BadRow(f"column {preview(min(more))} is not in the first row. Give all rows the same columns.")
        values = [_checked(record.get(name), name) for name in self.cells]
        self._add_label(record)
        self.accepted_rows.append(self.row)
        for cells, value in zip(self.cells.values(), values, strict=True):
            cells.append(value)

    def _add_label(self, record: Record) -> None:
        labels = self.labels
        key, text, identity = (parse_id(record.get(name), name, self.max_characters) for name in self.columns)
        if key in labels.number_of_key:
            raise BadRow(f"{self.columns[0]} {preview(key)} is in an earlier row too. Remove one of them.")
        if identity in self.known_ids:
            raise BadRow(f"id {preview(identity)} is in an earlier row too. Give each label its own id.")
        self.known_ids.add(identity)
        labels.number_of_key[key] = len(labels.ids)
        labels.ids.append(identity)
        labels.texts.append(text)


def _checked(value: Any, name: str) -> Any:
    """Return an attribute's value. Raises BadRow if it is not UTF-8, or an integer of more than 64 bits."""
    if isinstance(value, str):
        if not value.isascii():
            refuse_surrogates(value, name)
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            _checked(one, name)
    elif value is not None and not isinstance(value, float) and not -(2**63) <= value < 2**64:
        raise BadRow(f"{name} is {preview(value)}, which does not fit in 64 bits. Write it as text.")
    return value
