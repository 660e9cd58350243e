"""Find the files of a table: one file, the files that match a pattern, or a folder of part files of one kind."""

import errno
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

from retrieval.errors import BadInput, TableError, Unreachable
from retrieval.system.urls import as_url, file_system, refuse_password, short_error

JSON_LINES, DELIMITED, PARQUET = "JSON Lines", "CSV or TSV", "Parquet"
# Spark writes JSON Lines as .json.
KINDS = {
    ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".csv": DELIMITED, ".tsv": DELIMITED, ".parquet": PARQUET,
    ".json": JSON_LINES,
}  # fmt: skip
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
READABLE = ", ".join(KINDS)
DATE = "date"  # column of a date in a path
_DAY = re.compile(r"(?<!\d)(\d{4})(-?)(\d\d)\2(\d\d)$")
WILDCARDS = re.compile(r"[*?[]")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Folders of these formats also contain files with deleted or replaced rows.
_MANAGED = {"_delta_log": "a Delta Lake", ".hoodie": "a Hudi", "metadata": "an Iceberg"}


class _RemoteFile(io.RawIOBase):
    """A file of a driver whose errors are OSErrors, as those of local files."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with self._os_errors():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._os_errors():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # drivers have their own classes
            raise OSError(errno.EIO, short_error(error)) from error


@dataclass(frozen=True)
class TableFile:
    """One file. `name`: its path within the table, for messages; `values`: columns that its path gives."""

    location: Path | str
    name: str
    size: int  # bytes; -1: a link to a file that does not exist
    values: Mapping[str, str | None] = field(default_factory=dict)
    driver: Any = None  # the fsspec file system of a URL

    @classmethod
    def local(cls, path: Path) -> "TableFile":
        """Return a file on this machine. Raises TableError if it does not exist or is not a regular file."""
        if not path.exists():
            raise TableError(f"{path} does not exist. Check the path.")
        if not path.is_file():
            raise TableError(f"{path} is not a regular file. Name a file.")
        return cls(path, path.name, path.stat().st_size)

    @property
    def stamp(self) -> list[Any]:
        """Return values that differ after the file has changed."""
        if self.driver is None:
            status = Path(self.location).stat()
            return [str(Path(self.location).resolve()), status.st_size, status.st_mtime_ns]
        with _driver_errors(self.location):
            self.driver.invalidate_cache()
            return [self.location, self.driver.info(self.location)["size"], self.driver.ukey(self.location)]

    def open_bytes(self) -> io.BufferedReader:
        """Open the file as it is stored."""
        if self.driver is None:
            return Path(self.location).open("rb")
        with _driver_errors(self.location):
            return io.BufferedReader(_RemoteFile(self.driver.open(self.location, "rb")))


def ending(path: PurePath | str) -> str:
    """Return the suffix that names the format, in lower case: `.jsonl` of `Keywords.JSONL.xz`."""
    return PurePath(_uncompressed(path)).suffix.lower()


def stem(path: PurePath | str) -> str:
    """Return the file's name without its format and compression suffixes: `keywords` of `keywords.jsonl.xz`."""
    return _uncompressed(path).rsplit(".", 1)[0]


def _uncompressed(path: PurePath | str) -> str:
    name = PurePath(path)
    return name.stem if name.suffix.lower() in COMPRESSIONS else name.name


def kind_of(path: PurePath | str) -> str:
    """Return the kind of a file by its name. Raises TableError for an unknown one."""
    kind = KINDS.get(ending(path))
    if kind is None:
        raise TableError(
            f"{path} has none of the endings {READABLE} (also with {', '.join(COMPRESSIONS)}). Convert or rename it."
        )
    return kind


def find_files(source: Path | str, without: Path | str | None = None) -> tuple[list[TableFile], list[str]]:
    """Return the files of a table in order, and the names of other visible files in its folders.

    source: a file, a pattern such as `logs/2026-09-*.csv.gz`, or a folder of part files, also behind a URL. Names that
    start with `_` or `.` are ignored, as Spark writes them beside its parts; so is the file `without`. Folders inside
    the folder must be partitions: `date=2026-09-01`, 2026-09-01 or 20260901.
    Raises TableError for a folder without data files, with files of several formats, or with data in other folders.
    """
    files = _local_files(Path(source)) if (url := as_url(source)) is None else _remote_files(url)
    is_one = len(files) == 1 and files[0].name == PurePath(str(source)).name
    if not is_one:
        _refuse_managed(source, files)
        files = [one for one in files if _is_visible(one.name) and not _same(one, without)]
        _refuse_unreadable(source, files)
    data = [one for one in files if is_one or ending(one.name) in KINDS]
    data = [one for one in data if ending(one.name) != ".json"] or data  # else .json files are metadata
    if not data:
        raise TableError(f"{source} contains no data file ({READABLE}) and is not an LF-* set. Name a file.")
    if len({kind_of(one.location) for one in data}) > 1:
        raise TableError(
            f"{source} contains files of several formats: {_names(one.name for one in data)}. Name one file, "
            "or keep only part files of one format in the folder."
        )
    return data, [one.name for one in files if one not in data]


def _local_files(source: Path) -> list[TableFile]:
    """Return all files of a source on this machine, in order. Raises TableError if it does not exist."""
    text = str(source)
    if source.is_file() or not (source.is_dir() or WILDCARDS.search(text)):
        return _with_values(source, "", [TableFile.local(source)])
    root = str(source) if source.is_dir() else _fixed_folder(text)
    paths = [text] if source.is_dir() else glob.glob(text, recursive=True)
    walked = (
        os.path.join(folder, name)
        for path in paths
        if os.path.isdir(path)
        for folder, _, names in os.walk(path, onerror=_refuse_folder, followlinks=True)
        for name in names
    )
    files = [
        TableFile(Path(path), os.path.relpath(path, root), os.stat(path).st_size if os.path.exists(path) else -1)
        for path in sorted({*walked, *(path for path in paths if not os.path.isdir(path))})
    ]
    return _with_values(source, PurePath(root).name, files)


def _remote_files(url: str) -> list[TableFile]:
    """Return all files of a URL, in order. Raises TableError if it does not exist."""
    try:
        refuse_password(url)
        driver, root = file_system(url)
    except (BadInput, Unreachable) as error:
        raise TableError(str(error)) from error
    infos: dict[str, Any] = {}
    with _driver_errors(url):
        driver.invalidate_cache()
        is_pattern = bool(WILDCARDS.search(root)) and not driver.exists(root)
        matches = driver.glob(root, detail=True) if is_pattern else {root: driver.info(root)}
        for path, info in matches.items():
            infos |= driver.find(path, detail=True) if info["type"] == "directory" else {path: info}
    is_folder = not is_pattern and matches[root]["type"] == "directory"
    folder = root if is_folder else _fixed_folder(root) if is_pattern else root.rpartition("/")[0]
    files = [
        TableFile(driver.unstrip_protocol(path), path.removeprefix(f"{folder}/"), info["size"], driver=driver)
        for path, info in sorted(infos.items())
    ]
    return _with_values(url, PurePath(folder).name if is_folder or is_pattern else "", files)


def _with_values(source: Path | str, folder: str, files: list[TableFile]) -> list[TableFile]:
    """Return files with the columns that their paths give; `folder` is the name of the folder above all of them.

    Raises TableError if no file matches a pattern.
    """
    if not files and WILDCARDS.search(str(source)):
        raise TableError(f"{source} matches no file. Check the pattern.")
    located = []
    for file in files:
        folders = [folder, *PurePath(file.name).parts[:-1]]
        values = {name: value for one in folders for name, value in _folder_values(one).items()}
        day = _day(stem(file.name))
        located.append(replace(file, values=({DATE: day} if day else {}) | values))
    return located


def _folder_values(name: str) -> dict[str, str | None]:
    """Return the column that a folder's name gives: `market` of `market=uk`, `date` of 2026-09-01 and 20260901."""
    column, separator, value = name.partition("=")
    if separator and column:
        return {column: None if value == _HIVE_NULL else unquote(value)}
    return {DATE: day} if _DAY.match(name) and (day := _day(name)) else {}


def _day(name: str) -> str | None:
    """Return the date at the end of a name, such as clicks-2026-09-01 and part_20260901."""
    if not (match := _DAY.search(name)):
        return None
    try:
        return date.fromisoformat("-".join(match.group(1, 3, 4))).isoformat()
    except ValueError:
        return None


def _refuse_managed(source: Path | str, files: list[TableFile]) -> None:
    """Raise TableError for the folder of a table format that needs more than reading its files."""
    folders = {PurePath(one.name).parts[0] for one in files if len(PurePath(one.name).parts) > 1}
    if managed := next((name for name in _MANAGED if name in folders), None):
        raise TableError(
            f"{source} is {_MANAGED[managed]} table, whose folder also has files with deleted rows. "
            "Write it as plain Parquet."
        )


def _refuse_unreadable(source: Path | str, files: list[TableFile]) -> None:
    """Raise TableError for data in folders that are no partitions, and for links to missing files."""
    data = [one for one in files if ending(one.name) in KINDS and ending(one.name) != ".json"]
    folders = dict.fromkeys(part for one in data for part in PurePath(one.name).parts[:-1] if not _folder_values(part))
    if folders:
        raise TableError(
            f"{source} has data in subfolders ({_names(folders)}), which would not be read. Name one of them, "
            "or name the folders by date, such as date=2026-09-01."
        )
    if broken := [one.name for one in files if one.size < 0 and ending(one.name) in KINDS]:
        raise TableError(
            f"{source} contains links to missing files: {_names(broken)}. Restore the files or remove the links."
        )


def _refuse_folder(error: OSError) -> None:
    raise TableError(f"{error.filename} cannot be read ({error.strerror}). Check its permissions.") from error


@contextmanager
def _driver_errors(location: Path | str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise TableError(f"{location} does not exist. Check the path.") from error
    except Exception as error:  # drivers have their own classes
        raise TableError(
            f"{location} cannot be read ({short_error(error)}). Check the URL, and the credentials in the environment."
        ) from error


def _fixed_folder(pattern: str) -> str:
    """Return the folders before the first part of a path that has a wildcard."""
    return WILDCARDS.split(pattern)[0].rpartition("/")[0] or "."


def _is_visible(name: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in PurePath(name).parts)


def _same(one: TableFile, other: Path | str | None) -> bool:
    if other is None or one.driver is not None:
        return other is not None and str(one.location) == str(other)
    return Path(other).exists() and Path(one.location).samefile(other)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")
