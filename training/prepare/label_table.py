"""The label table that comes with a source: which labels there are, their ids and their attributes.

The table of `--labels` has a key column, whose values the source uses to name labels, and any other columns.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval.errors import DatasetError
from retrieval.tables.files import PARQUET
from retrieval.tables.table import Table
from retrieval.tables.values import BadRow, id_of, refuse_surrogates, shown
from training.prepare.attributes import attribute_column
from training.prepare.files import Meter
from training.prepare.row_counts import InputRows, Record

RESERVED = ("id", "text")
_CHOOSE = {
    "--label-text": "Choose the labels' text with --label-text.",
    "--label-key": "Choose what the source names labels by with --label-key, and their text with --label-text.",
}


@dataclass
class Catalogue:
    """Labels by key, in the order met; `closed` when the key is an id, so that an unknown key has no text."""

    rows: dict[str, int] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    closed: bool = False
    name: str = ""
    text: str = "text"  # the column it is in
    listed: int = 0

    def row(self, key: str) -> int:
        """The number of the label with this key: a new one for a new text; BadRow for an unknown id."""
        row = self.rows.get(key)
        if row is None:
            if self.closed:
                raise BadRow(
                    f"label {shown(key)} is no {self.name}. {self._alike(key)}Add it there, "
                    f"or match labels by their text with --label-key {self.text}."
                )
            row = self.rows[key] = len(self.ids)
            self.ids.append(key)
            self.texts.append(key)
        return row

    def find(self, key: str) -> int | None:
        """The number of the label with this key, None where an unknown id can be no label."""
        return self.rows.get(key) if self.closed else self.row(key)

    def _alike(self, key: str) -> str:
        """Return a hint at an id that is the same number in another spelling, such as 7 for 7.0 or 007."""
        whole = key.removesuffix(".0").lstrip("0") or "0"
        alike = next((one for one in (whole, f"{whole}.0") if one != key and one in self.rows), None)
        return "" if alike is None else f"It has {shown(alike)}: spell both the same. "


def read_catalogue(
    path: Path, key: str | None, text: str | None, limit: int, rows: InputRows, report: Counter[str], meter: Meter
) -> Catalogue:
    """Read a `--labels` table; bad rows are noted in `rows`. Raises DatasetError for missing or unusable columns.

    The text is the column named, else `text` where there is one, else the key. The key is the column named, else `id`
    where there is one, else the text. A key beside the text is the label's id; one that is the text is its id too.
    """
    table = Table(path)
    if table.is_empty:
        raise DatasetError(f"{path} is empty. Give a table with the columns id and text, or leave --labels out.")
    keyed_by = key
    key = key or ("id" if "id" in table.names else text or "text")
    text = text or ("text" if "text" in table.names else key)
    identity = "id" if "id" in table.names else key
    for option, name in (("--label-text", text), ("--label-key", key)):
        if name not in table.names:
            raise DatasetError(f"{path} has no column {name!r}. It has: {', '.join(table.names)}. {_CHOOSE[option]}")
    others = [name for name in table.names if name not in {key, text, *RESERVED}]
    for name in dict.fromkeys([text, key, identity, *others]):
        table.require(name, "--label-text" if name == text else "--label-key")
    catalogue = Catalogue(closed=key != text, name=f"{key} of {path.name}", text=text)
    _Reading(catalogue, table, (key, text, identity), others, limit).read(rows, meter)
    catalogue.listed = len(catalogue.ids)
    if keyed_by and key == text and others:  # a product's number would be learned as its text
        report[f"labels whose text is their {key!r}; --label-text names another column"] = catalogue.listed
    report.update(table.observations())
    return catalogue


class _Reading:
    """One pass over a label table. Attributes in Parquet stay in Arrow; in other tables they are Python values."""

    def __init__(
        self, catalogue: Catalogue, table: Table, columns: tuple[str, str, str], others: list[str], limit: int
    ) -> None:
        self.catalogue, self.table, self.columns, self.limit = catalogue, table, columns, limit
        self.others = others
        self.in_arrow = table.kind == PARQUET
        self.cells: dict[str, list[Any]] = {} if self.in_arrow else {name: [] for name in others}
        self.row, self.taken = -1, list[int]()
        self.known_ids: set[str] = set()

    def read(self, rows: InputRows, meter: Meter) -> None:
        """Fill the catalogue with labels and attributes."""
        wanted = list(dict.fromkeys([*self.columns, *self.cells]))
        for where, record in rows.filled(self.table.rows(wanted, meter)):
            self.row += 1
            rows.attempt(where, record, self._take)
        path, attributes = self.table.path, self.catalogue.attributes
        if self.in_arrow and self.others:
            taken_N = np.zeros(self.row + 1, np.bool_)
            taken_N[self.taken] = True
            taken, columns = pa.array(taken_N), self.table.arrow(self.others)
            for name in self.others:  # not take(), which joins chunks and fails beyond 2 GB
                attributes[name] = attribute_column(path, name, columns[name]).filter(taken)
        else:
            attributes |= {name: attribute_column(path, name, cells) for name, cells in self.cells.items()}

    def _take(self, record: Record) -> None:
        if not self.table.has_header and (more := record.keys() - {*self.columns, *self.cells, *RESERVED}):
            if "" in more:
                raise BadRow("a key is empty. Give it a name or remove it.")
            raise BadRow(f"column {shown(min(more))} is not in the first row. Give all rows the same columns.")
        values = [_checked(record.get(name), name) for name in self.cells]
        _add(self.catalogue, record, self.columns, self.limit, self.known_ids)
        self.taken.append(self.row)
        for cells, value in zip(self.cells.values(), values, strict=True):
            cells.append(value)


def _add(catalogue: Catalogue, record: Record, columns: Sequence[str], limit: int, known_ids: set[str]) -> None:
    key, text, identity = (id_of(record.get(name), name, limit) for name in columns)
    if key in catalogue.rows:
        raise BadRow(f"{columns[0]} {shown(key)} stands in an earlier row too. Keep one of them.")
    if identity in known_ids:
        raise BadRow(f"id {shown(identity)} stands in an earlier row too. Give each label its own id.")
    known_ids.add(identity)
    catalogue.rows[key] = len(catalogue.ids)
    catalogue.ids.append(identity)
    catalogue.texts.append(text)


def _checked(value: Any, name: str) -> Any:
    """Return an attribute's value. Raises BadRow if it is not UTF-8, or an integer of more than 64 bits."""
    if isinstance(value, str):
        if not value.isascii():
            refuse_surrogates(value, name)
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            _checked(one, name)
    elif value is not None and not isinstance(value, float) and not -(2**63) <= value < 2**64:
        raise BadRow(f"{name} is {shown(value)}, which no 64-bit integer holds. Write it as text.")
    return value
