"""Settings of `diptych prepare`: all options that change the dataset, from the command line and `source.yaml`."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.errors import DatasetError
from retrieval.tables.delimited import Quoting

SOURCE_YAML = "source.yaml"
MAX_SOURCE_YAML = 65_536  # bytes
MAX_SHARE = 0.2  # default share of a query's clicks that one source has at most
NO_COLUMN = "none"  # as a column's name: do not use the column that is recognised by its name

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]
TextFields = Literal["title", "title+content"]


class PrepareSettings(BaseModel):
    """All options of `diptych prepare` that change the dataset. A column that is None is recognised by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_column: str | None = None
    label_column: str | None = None
    label_text_column: str | None = None
    split_column: str | None = None
    clicks_column: str | None = None
    impressions_column: str | None = None
    position_column: str | None = None
    date_column: str | None = None
    source_column: str | None = None
    attribute_columns: tuple[str, ...] = ()
    label_key: str | None = None
    label_text: str | None = None
    text: TextFields = "title"
    test: Share = 0.1
    validation: Share = 0.1
    test_from: date | None = None
    test_days: Annotated[int, Field(ge=1)] | None = None
    min_clicks: Annotated[int, Field(ge=1)] = 1
    min_ctr: Share = 0.0
    half_life_days: Annotated[float, Field(gt=0)] | None = None
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None  # None: MAX_SHARE with a source column
    examination: str | None = None
    min_label_count: Count = 0
    separator: str | None = None
    quoting: Quoting = "auto"
    max_characters: Annotated[int, Field(ge=1)] = 1_000_000
    skip_bad_rows: bool = False

    @model_validator(mode="after")
    def _one_test_period(self) -> "PrepareSettings":
        if self.test_from and self.test_days:
            raise ValueError("--test-from and --test-days both choose the test period. Give one of them.")
        return self

    @property
    def splits_by_time(self) -> bool:
        """Return whether the date of a click decides its split."""
        return self.test_from is not None or self.test_days is not None


def merged_settings(options: Mapping[str, Any], folder: Path | None) -> tuple[PrepareSettings, Path | None]:
    """Return the settings of the options and of `source.yaml` in `folder`; also return that file if there is one.

    options: values by name of PrepareSettings, None for options that are not given; they override the file. Raises
    DatasetError for a file that cannot be read, an unknown key, and an invalid value.
    """
    path = folder / SOURCE_YAML if folder is not None and (folder / SOURCE_YAML).is_file() else None
    recorded = _read(path) if path else {}
    chosen = {name: value for name, value in options.items() if value is not None}
    try:
        return PrepareSettings.model_validate(recorded | chosen), path
    except ValidationError as error:
        raise DatasetError(_sentence(error, recorded, chosen, path)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SOURCE_YAML + 1)
        if len(content) > MAX_SOURCE_YAML:
            raise DatasetError(f"{path} is larger than {MAX_SOURCE_YAML:,} bytes. Write only options of prepare.")
        values = yaml.safe_load(content) or {}
    except (OSError, yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}). Correct it.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DatasetError(f"{path} is not a mapping. Write one option per line, such as `query_column: search_term`.")
    return {key.replace("-", "_"): value for key, value in values.items()}


def _sentence(error: ValidationError, recorded: Mapping[str, Any], chosen: Mapping[str, Any], path: Path | None) -> str:
    problem = error.errors()[0]
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    where = f"{path}: {name}" if name in recorded and name not in chosen else f"--{name.replace('_', '-')}"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(PrepareSettings.model_fields)
        return f"{where} is not an option of prepare. Use one of: {known}."
    return f"{where} is {problem['input']!r}: {problem['msg']}."


def source_folder(source: str) -> Path | None:
    """Return the folder that may have the source's `source.yaml`: the source, or the one that contains it."""
    if "://" in source:
        return None
    path = Path(source)
    while any(letter in path.name for letter in "*?["):
        path = path.parent
    return path if path.is_dir() else path.parent
