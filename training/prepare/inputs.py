"""The inputs of `diptych prepare`: the tables or the LF-* files of a source, and what a dataset records about them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.errors import DatasetError
from retrieval.tables.delimited import Layout
from retrieval.tables.table import Table
from training.prepare.bad_rows import escape_surrogates
from training.prepare.settings import PrepareSettings
from training.prepare.source_yaml import SOURCE_YAML
from training.prepare.sources.lf_source import is_lf, lf_files

PREPARE_VERSION = 5  # increase it when the same source and settings give another dataset


@dataclass(frozen=True)
class SourceFiles:
    """A table, or the files of an LF-* folder by part; and the label table, if there is one."""

    name: str  # default name of the dataset
    source: str  # as it was named
    table: Table | None
    lf_parts: Mapping[str, Path]
    labels: Table | None

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        tables = [part.size for table in (self.table, self.labels) if table for part in table.parts]
        return sum(tables) + sum(path.stat().st_size for path in self.lf_parts.values())


def find_source_files(source: str, labels: str | None, settings: PrepareSettings) -> SourceFiles:
    """Return the files to read. Raises DatasetError if there are none, or if an option does not apply to them."""
    path = Path(source)
    if (path / "dataset.json").is_file():
        raise DatasetError(
            f"{source} is already a prepared dataset. Name the source that it was made from, or train on it."
        )
    if path.is_dir() and is_lf(path):
        _refuse_table_options(source, labels, settings)
        return SourceFiles(path.resolve().name, source, None, lf_files(path), None)
    if settings.text != "title":
        raise DatasetError(f"--text is for LF-* folders, and {source} is not one. Leave it out.")
    if labels is None and (option := "key" if settings.label_key else "text" if settings.label_text else ""):
        raise DatasetError(f"--label-{option} names a column of the label table. Give the table with --labels.")
    table = Table(source, Layout.of(settings.separator, settings.quoting), without=labels)
    table.unread = [one for one in table.unread if one != SOURCE_YAML]
    if not sum(part.size for part in table.parts):
        raise DatasetError(f"{source} is empty. Give a file with rows.")
    return SourceFiles(table.name, source, table, {}, Table(labels) if labels else None)


def recorded_settings(settings: PrepareSettings, files: SourceFiles) -> dict[str, Any]:
    """Return what a dataset depends on: all settings, and the name and SHA-256 of each file."""
    recorded = {key: _escaped(value) for key, value in settings.model_dump(mode="json").items()}
    hashes = {part: _described(path) for part, path in files.lf_parts.items()}
    for name, table in (("rows", files.table), ("labels", files.labels)):
        parts = table.parts if table else []
        for number, part in enumerate(parts, 1):
            key = name if len(parts) == 1 else f"{name} {number}"
            hashes[key] = f"{escape_surrogates(part.name)} {part.sha256}"
    if settings.examination:
        path = Path(settings.examination)
        hashes["examination"] = _described(path) if path.is_file() else ""
    return recorded | {"prepare_version": PREPARE_VERSION, "files": hashes}


def _escaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    return escape_surrogates(value) if isinstance(value, str) else value


def _described(path: Path) -> str:
    """Return the name and the SHA-256 of a file."""
    with path.open("rb") as file:
        return f"{escape_surrogates(path.name)} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _refuse_table_options(source: str, labels: str | None, settings: PrepareSettings) -> None:
    """Raise DatasetError for an option that applies to tables only."""
    of_lf = {"text", "test", "validation", "min_label_count", "max_characters", "skip_bad_rows"}
    changed = settings.model_dump(exclude_defaults=True).keys() - of_lf
    if labels or changed:
        option = "labels" if labels else min(changed).replace("_", "-")
        raise DatasetError(
            f"--{option} does not apply to {source}, which is an LF-* set and has its own labels. Leave it out."
        )
