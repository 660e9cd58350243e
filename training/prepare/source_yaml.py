"""Read `source.yaml`, the file next to a log that has its options, such as `query_column: search_term`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from retrieval.errors import DatasetError
from retrieval.system.urls import as_url, file_system
from retrieval.tables.files import WILDCARDS

SOURCE_YAML = "source.yaml"
MAX_BYTES = 65_536


@dataclass(frozen=True)
class SourceYaml:
    """The values of a `source.yaml` by option, and its path or URL."""

    location: str
    values: dict[str, Any]


def read_source_yaml(source: str) -> SourceYaml | None:
    """Return the `source.yaml` in the folder of a source, or in the source; None if there is none.

    Raises DatasetError for a file that cannot be read, or that is not a mapping.
    """
    url = as_url(source)
    if url is None:
        folder = _folder(source, lambda path: Path(path).is_dir())
        file = Path(folder) / SOURCE_YAML
        return _parsed(str(file), lambda: file.open("rb")) if file.is_file() else None
    driver, root = file_system(url)
    path = f"{_folder(root, driver.isdir)}/{SOURCE_YAML}"
    if not driver.isfile(path):
        return None
    return _parsed(driver.unstrip_protocol(path), lambda: driver.open(path, "rb"))


def _folder(source: str, is_folder: Callable[[str], bool]) -> str:
    """Return the source if it is a folder, else the folder that contains it or its pattern."""
    path = source.rstrip("/")
    while WILDCARDS.search(path):
        path = path.rpartition("/")[0]
        if not WILDCARDS.search(path):
            return path or "."
    return path if is_folder(path) else path.rpartition("/")[0] or "."


def _parsed(location: str, open_file: Callable[[], BinaryIO]) -> SourceYaml:
    try:
        with open_file() as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DatasetError(f"{location} is larger than {MAX_BYTES:,} bytes. Write only options of prepare.")
        values = yaml.safe_load(content) or {}
    except (OSError, yaml.YAMLError, UnicodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{location} cannot be read as YAML ({reason}). Correct it.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DatasetError(
            f"{location} is not a mapping. Write one option per line, such as `query_column: search_term`."
        )
    return SourceYaml(location, {key.replace("-", "_"): value for key, value in values.items()})
