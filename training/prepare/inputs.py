"""The inputs of `diptych prepare`: its settings, and the files of the source."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from retrieval.errors import DatasetError
from retrieval.tables.delimited import Quoting
from retrieval.tables.files import require_file, stem, table_files
from training.prepare.lf_source import TextFields, is_lf, lf_files

PREPARE_VERSION = 4  # increase it when the same source and settings give another dataset
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]


class PrepareSettings(BaseModel):
    """All options of `diptych prepare` that change the dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    count_column: str | None = None
    label_key: str | None = None
    label_text: str | None = None
    text: TextFields = "title"
    test: Share = 0.1
    validation: Share = 0.1
    min_count: Count | None = None  # None: 1 with a count column, which leaves out pairs with count 0, else 0
    min_label_count: Count = 0
    separator: str | None = None
    quoting: Quoting = "auto"
    max_characters: Annotated[int, Field(ge=1)] = 1_000_000
    skip_bad_rows: bool = False

    @property
    def min_pair_count(self) -> int:
        """Return the count from which a pair is a positive."""
        return self.min_count if self.min_count is not None else 0 if self.count_column is None else 1


class SourceFiles(BaseModel):
    """The files of a table or of an LF-* folder, and those of the label table."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    path: Path
    parts: dict[str, Path]
    labels: Path | None = None
    label_parts: dict[str, Path] = {}

    @property
    def is_lf(self) -> bool:
        """Return whether this is an LF-* folder."""
        return "lbl" in self.parts

    @property
    def files(self) -> dict[str, Path]:
        """Return all files, by part."""
        return self.parts | self.label_parts

    @property
    def name(self) -> str:
        """Return the default name of the dataset: that of the file, or of the folder if there are several files."""
        files = list(self.parts.values())
        return self.path.resolve().name if self.is_lf or len(files) > 1 else stem(files[0])


def find_source_files(source: Path, labels: Path | None, settings: PrepareSettings) -> SourceFiles:
    """Return the files to read. Raises DatasetError if there are none, or if an option does not apply to them."""
    if not source.exists():
        raise DatasetError(f"{source} does not exist. Check the path.")
    if (source / "dataset.json").is_file():
        raise DatasetError(
            f"{source} is already a prepared dataset. Name the source that it was made from, or train on it."
        )
    lf = source.is_dir() and is_lf(source)
    parts = lf_files(source) if lf else _numbered("rows", table_files(source, without=labels))
    if lf:
        _refuse_table_options(source, labels, settings)
    elif settings.text != "title":
        raise DatasetError(f"--text is for LF-* folders, and {source} is not one. Leave it out.")
    elif labels is None and (option := "key" if settings.label_key else "text" if settings.label_text else ""):
        raise DatasetError(f"--label-{option} names a column of the label table. Give the table with --labels.")
    label_parts = _numbered("labels", table_files(labels)) if labels else {}
    for path in parts.values():
        require_file(path)
    if not sum(path.stat().st_size for path in parts.values()):
        raise DatasetError(f"{source} is empty. Give a file with rows.")
    return SourceFiles(path=source, parts=parts, labels=labels, label_parts=label_parts)


def recorded_settings(settings: PrepareSettings, files: SourceFiles) -> dict[str, Any]:
    """Return what a dataset depends on: all settings, and the name and SHA-256 of each file."""
    values = settings.model_dump(mode="json").items()
    recorded: dict[str, Any] = {
        key: escape_surrogates(value) if isinstance(value, str) else value for key, value in values
    }
    return recorded | {
        "prepare_version": PREPARE_VERSION,
        "files": {part: f"{escape_surrogates(path.name)} {_sha256(path)}" for part, path in files.files.items()},
    }


def escape_surrogates(text: str) -> str:
    """Return `text` with lone surrogates escaped. They stand for bytes of names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numbered(part: str, files: list[Path]) -> dict[str, Path]:
    """Return the files of a table by name: `rows`, or `rows 1`, `rows 2`, … if there are several."""
    if len(files) == 1:
        return {part: files[0]}
    return {f"{part} {number}": path for number, path in enumerate(files, 1)}


def _refuse_table_options(source: Path, labels: Path | None, settings: PrepareSettings) -> None:
    options = {
        "--labels": labels,
        "--query-column": settings.query_column,
        "--label-column": settings.label_column,
        "--split-column": settings.split_column,
        "--count-column": settings.count_column,
        "--label-key": settings.label_key,
        "--label-text": settings.label_text,
        "--min-count": settings.min_count,
        "--separator": settings.separator,
        "--quoting": settings.quoting if settings.quoting != "auto" else None,
    }
    for option, value in options.items():
        if value:
            raise DatasetError(
                f"{option} does not apply to {source}, which is an LF-* set and has its own labels. Leave it out."
            )
