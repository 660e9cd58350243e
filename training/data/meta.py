"""dataset.json: the description of a prepared dataset."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from retrieval.errors import DatasetError
from retrieval.tables.account import RowAccount

# Version 2: `notes`, with identifiers as keys, replaces `report`, with sentences as keys; weights, days and exposures.
FORMAT_VERSION = 2
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


class Section(BaseModel):
    """Base of the parts of dataset.json: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitCounts(Section):
    """Sizes of one split."""

    rows: int
    positives: int
    rows_without_labels: int


class DayCounts(Section):
    """Rows of the log, their clicks and the positives among their pairs on one day."""

    rows: int
    clicks: float
    positives: int


class Period(Section):
    """First and last day of the log, and the first days of validation and test, as ISO dates; None: unknown."""

    first_day: str | None = None
    last_day: str | None = None
    validation_from: str | None = None
    test_from: str | None = None


class LabelRename(Section):
    """A label whose text changed in the log: its id, an earlier text, and the latest one."""

    id: str
    before: str
    now: str


class DatasetMeta(Section):
    """dataset.json: source, settings, sizes and counts of a prepared dataset.

    `notes` maps identifiers to counts, or to counts by name, such as `{"unused_columns": {"price": 200}}`;
    training/prepare/summary.py has their texts. `skipped_first` are messages for the first of `skipped` bad rows.
    `days` has counts by ISO date, `renames` the number of labels whose text changed, `renames_first` the first of them,
    and `query_identity` the version of the rule that decides which texts are the same query. `detected` maps an
    identifier, such as `query_column`, `separator` or `encoding`, to what was detected in the source.
    `examination` has the probability per position, by which clicks were weighted. `excluded_may_be_true`: excluded
    labels are left out of rankings but stay true labels, as in the extreme classification repository's evaluation.
    """

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
    days: dict[str, DayCounts] = {}
    period: Period | None = None
    renames: int = 0
    renames_first: tuple[LabelRename, ...] = ()
    detected: dict[str, str] = {}
    examination: tuple[float, ...] | None = None
    query_identity: int = 1
    excluded_may_be_true: bool = False
    fingerprint: str = ""

    @model_validator(mode="before")
    @classmethod
    def _upgrade_version_1(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("format_version") != 1:
            return data
        others = {key: value for key, value in data.items() if key != "report"}
        return {**others, "format_version": FORMAT_VERSION, "notes": data.get("report", {})}


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
        return f"format_version is {problems['format_version']['input']}, not 1 or {FORMAT_VERSION}"
    where, problem = next(iter(problems.items()))
    return f"{where or 'the file'}: {problem['msg']}"
