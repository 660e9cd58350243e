"""Settings of `diptych prepare`: all options that change the dataset, from the command line and `source.yaml`."""

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.errors import DatasetError
from retrieval.tables.delimited import Quoting
from training.prepare.source_yaml import SourceYaml

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
    attribute_column: tuple[str, ...] = ()
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


def merged_settings(options: Mapping[str, Any], file: SourceYaml | None) -> PrepareSettings:
    """Return the settings of the options and of `source.yaml`.

    options: values by name of PrepareSettings, None for options that are not given; they override the file. Raises
    DatasetError for an unknown key and an invalid value.
    """
    recorded = file.values if file else {}
    chosen = {name: value for name, value in options.items() if value is not None}
    try:
        return PrepareSettings.model_validate(recorded | chosen)
    except ValidationError as error:
        raise DatasetError(_sentence(error, recorded, chosen, file.location if file else "")) from error


def _sentence(error: ValidationError, recorded: Mapping[str, Any], chosen: Mapping[str, Any], location: str) -> str:
    problem = error.errors()[0]
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    where = f"{location}: {name}" if name in recorded and name not in chosen else f"--{name.replace('_', '-')}"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(PrepareSettings.model_fields)
        return f"{where} is not an option of prepare. Use one of: {known}."
    return f"{where} is {problem['input']!r}: {problem['msg']}."
