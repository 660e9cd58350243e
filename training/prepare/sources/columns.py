"""Choose the columns of a source: named by options, or recognised by their names."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from retrieval.errors import DatasetError
from retrieval.tables.batches import Part
from retrieval.tables.columns import Attribute
from retrieval.tables.json_lines import JsonPart
from retrieval.tables.opening import NoReadingProgress
from retrieval.tables.table import Table
from retrieval.tables.values import parse_list_cell
from training.prepare.settings import NO_COLUMN, PrepareSettings

ROWS_TO_LOOK_AT = 100  # before the others of a batch; nearly always the first row has a label
RESERVED = ("id", "text", "first_seen", "last_seen")  # columns of every label table
RECOGNISED = ("label_text", "split", "clicks", "impressions", "position", "date")


@dataclass(frozen=True)
class Columns:
    """Names of the source's columns by role; None: the source has no such column.

    `recognised` are the roles whose column was chosen by its name, without an option.
    """

    query: str
    label: str
    label_text: str | None = None
    split: str | None = None
    clicks: str | None = None
    impressions: str | None = None
    position: str | None = None
    date: str | None = None
    source: str | None = None
    attributes: tuple[str, ...] = ()
    recognised: tuple[str, ...] = field(default=(), compare=False)

    def named(self) -> dict[str, str]:
        """Return the names of the columns by role, without roles that no column has."""
        roles = {role: getattr(self, role) for role in ("query", "label", *RECOGNISED, "source")}
        named = {role: name for role, name in roles.items() if name is not None}
        return named | {f"attribute {name}": name for name in self.attributes}

    def detected(self) -> dict[str, str]:
        """Return descriptions of the columns, for dataset.json."""
        return {
            f"{role}_column": f"{name} (recognised)" if role in self.recognised else name
            for role, name in self.named().items()
        }


def choose_columns(table: Table, settings: PrepareSettings, label: str, *, lists: bool) -> Columns:
    """Return the columns of a source. `label` is the name of the label column, `lists` whether it has lists of labels.

    Raises TableError if a column is missing or occurs twice, DatasetError for columns that do not fit together.
    """
    names = set(table.names)
    possible = ("split",) if lists else RECOGNISED
    named = {role: getattr(settings, f"{role}_column") for role in possible}
    recognised = tuple(role for role in possible if named[role] is None and role in names)
    chosen = named | {role: role for role in recognised}
    roles = {role: None if name == NO_COLUMN else name for role, name in chosen.items()}
    if not lists:
        roles["source"] = settings.source_column or ("source" if settings.max_share and "source" in names else None)
    columns = Columns(
        settings.query_column or "query", label, attributes=settings.attribute_column, recognised=recognised, **roles
    )
    if table.names:
        for role in ("query", "label", *roles):
            if (name := getattr(columns, role)) is not None:
                table.require(name, option(role))
        for name in columns.attributes:
            table.require(name, "--attribute-column")
    if not lists:
        _check(columns, settings)
    return columns


def option(role: str) -> str:
    """Return the option that names the column of a role."""
    return f"--{role.replace('_', '-')}-column"


def _check(columns: Columns, settings: PrepareSettings) -> None:
    if columns.impressions and not columns.clicks:
        raise DatasetError(
            f"The source has impressions ({columns.impressions}) but no clicks, so every row would be a click. Name "
            f"the column of the clicks with --clicks-column, or ignore impressions with --impressions-column none."
        )
    if reserved := [name for name in columns.attributes if name in RESERVED]:
        raise DatasetError(
            f"--attribute-column {reserved[0]}: labels have a column of this name already. Rename the log's column."
        )
    needs = {
        "--test-from": (settings.test_from, "date", "dates"),
        "--test-days": (settings.test_days, "date", "dates"),
        "--half-life-days": (settings.half_life_days, "date", "dates"),
        "--min-ctr": (settings.min_ctr, "impressions", "impressions"),
        "--examination": (settings.examination, "position", "positions"),
        "--max-share": (settings.max_share, "source", "the sources of clicks, such as users"),
    }
    for name, (value, role, content) in needs.items():
        if value and getattr(columns, role) is None:
            raise DatasetError(f"{name} needs a column with {content}. Name it with {option(role)}.")


def label_form(table: Table, settings: PrepareSettings) -> tuple[str, bool]:
    """Return the name of the label column, and whether rows have lists of labels; the first row with a label decides.

    The column is the option's, else `labels`, else `label`. A cell with a JSON list is a list in `labels` only.
    """
    names = [settings.label_column] if settings.label_column else ["labels", "label"]
    for part in table.parts:
        for record in _records(part, names):
            for name in names:
                value = parse_list_cell(record.get(name)) if name == "labels" else record.get(name)
                if value is not None and not isinstance(value, dict):  # an object is an invalid label
                    return name, isinstance(value, list)
    return next((name for name in names if name in table.names), names[-1]), False


def _records(part: Part, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the values of a part's rows in some columns."""
    if isinstance(part, JsonPart):
        for _, record in part.records(names, NoReadingProgress()):
            if isinstance(record, dict):
                yield record
        return
    for batch in part.batches({name: Attribute() for name in names if name in part.names}):
        yield from batch.rows.slice(0, ROWS_TO_LOOK_AT).to_pylist()
        yield from batch.rows.slice(ROWS_TO_LOOK_AT).to_pylist()
