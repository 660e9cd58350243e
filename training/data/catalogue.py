"""The label table that comes with a source: which labels there are, their ids and their attributes.

A file of `--labels`: CSV, TSV, Parquet or JSONL with a key column (what stands in the source as label) and any others.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import DatasetError
from training.data.files import Meter
from training.data.rows import BadRow, Problems, shown, text_of
from training.data.tables import records

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
                    f"label {shown(key)} is no {self.name}. Add it there, "
                    f"or match labels by their text with --label-key {self.text}."
                )
            row = self.rows[key] = len(self.ids)
            self.ids.append(key)
            self.texts.append(key)
        return row

    def find(self, key: str) -> int | None:
        """The number of the label with this key, None where an unknown id can be no label."""
        return self.rows.get(key) if self.closed else self.row(key)


def read_catalogue(
    path: Path, key: str | None, text: str | None, limit: int, problems: Problems, report: Counter[str], meter: Meter
) -> Catalogue:
    """Read a `--labels` file; DatasetError when its columns will not do, bad rows go to `problems`.

    The text is the column named, else `text` where there is one, else the key. The key is the column named, else `id`
    where there is one, else the text. A key beside the text is the label's id; one that is the text is its id too.
    """
    columns, rows = records(path, meter)
    keyed_by = key
    key = key or ("id" if "id" in columns else text or "text")
    text = text or ("text" if "text" in columns else key)
    for option, name in (("--label-text", text), ("--label-key", key)):
        if name not in columns:
            raise DatasetError(f"{path} has no column {name!r}. It has: {', '.join(columns)}. {_CHOOSE[option]}")
    identity = "id" if "id" in columns else key
    catalogue = Catalogue(closed=key != text, name=f"{key} of {path.name}", text=text)
    others = [name for name in columns if name not in {key, text, *RESERVED}]
    values: dict[str, list[Any]] = {name: [] for name in others}
    known_ids: set[str] = set()
    for where, record in rows:
        with problems.at(where):
            if isinstance(record, BadRow):
                raise record
            if more := record.keys() - set(columns):
                raise BadRow(f"column {shown(min(more))} is not in the first row. Give all rows the same columns.")
            _add(catalogue, record, (key, text, identity), limit, known_ids)
            for name in others:
                values[name].append(record.get(name))
    catalogue.listed = len(catalogue.ids)
    if keyed_by and key == text and others:  # a product's number would be learned as its text
        report[f"labels whose text is their {key!r}; --label-text names another column"] = catalogue.listed
    catalogue.attributes = {name: attribute(path, name, column) for name, column in values.items()}
    return catalogue


def _add(
    catalogue: Catalogue, record: dict[str, Any], columns: tuple[str, str, str], limit: int, known_ids: set[str]
) -> None:
    key, text, identity = (key_of(record.get(name), name, limit) for name in columns)
    if key in catalogue.rows:
        raise BadRow(f"{columns[0]} {shown(key)} stands in an earlier row too. Keep one of them.")
    if identity in known_ids:
        raise BadRow(f"id {shown(identity)} stands in an earlier row too. Give each label its own id.")
    known_ids.add(identity)
    catalogue.rows[key] = len(catalogue.ids)
    catalogue.ids.append(identity)
    catalogue.texts.append(text)


def key_of(value: Any, name: str, limit: int) -> str:
    """A key as text: whole numbers too, since ids often are; BadRow for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value, name, limit)


def attribute(path: Path, name: str, values: list[Any]) -> Any:
    """One attribute column in Arrow; DatasetError when its values are of mixed types or JSON cannot carry them."""
    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DatasetError(
            f"{path}: column {name!r} holds values of different types ({error}). Use one type."
        ) from error
    except UnicodeEncodeError as error:
        raise DatasetError(f"{path}: column {name!r} holds text that is not UTF-8. Convert the file.") from error
    if pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type):
        return column.cast(pa.string())
    if pa.types.is_floating(column.type):  # JSON has no NaN
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raise DatasetError(
            f"{path}: column {name!r} holds bytes, which no answer can carry. Leave it out or write text."
        )
    return column
