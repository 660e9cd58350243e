"""Find the files of a table: one file, the files that match a pattern, or a folder of part files of one kind."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path, PurePath
from typing import Any, BinaryIO
from urllib.parse import unquote

from retrieval.errors import TableError
from retrieval.tables.places import Entry, LocalPlace, Place, place_of

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
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Folders of these formats also contain files with deleted or replaced rows.
_MANAGED = {"_delta_log": "Delta Lake", ".hoodie": "Hudi", "metadata": "Iceberg"}


@dataclass(frozen=True)
class TableFile:
    """One file. `name`: its path within the table, for messages; `values`: columns that its path gives."""

    entry: Entry
    place: Place
    name: str
    values: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def location(self) -> Path | str:
        """Return the path or URL."""
        return self.entry.location

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.entry.size

    @property
    def stamp(self) -> list[Any]:
        """Return values that differ after the file has changed."""
        return self.place.stamp(self.entry)

    def open_bytes(self) -> BinaryIO:
        """Open the file as it is stored."""
        return self.place.open(self.entry)


def local_file(path: Path) -> TableFile:
    """Return one file on this machine. Raises TableError if it does not exist or is not a regular file."""
    place = LocalPlace(path)
    return TableFile(place.matches()[0], place, path.name)


def ending(path: PurePath | str) -> str:
    """Return the suffix that names the format, in lower case: `.jsonl` of `Keywords.JSONL.xz`."""
    return PurePath(_uncompressed(path)).suffix.lower()


def stem(path: PurePath | str) -> str:
    """Return the file's name without its format and compression suffixes: `keywords` of `keywords.jsonl.xz`."""
    return _uncompressed(path).rsplit(".", 1)[0]


def _uncompressed(path: PurePath | str) -> str:
    name = PurePath(path)
    return name.stem if name.suffix.lower() in COMPRESSIONS else name.name


def kind_of(path: Path | str) -> str:
    """Return the kind of a file by its name. Raises TableError for an unknown one."""
    kind = KINDS.get(ending(path))
    if kind is None:
        raise TableError(
            f"{path} has none of the endings {READABLE} (also with {', '.join(COMPRESSIONS)}). Convert or rename it."
        )
    return kind


def require_file(path: Path) -> None:
    """Raise TableError if the file does not exist or is not a regular file."""
    LocalPlace(path).matches()


def find_files(source: Path | str, without: Path | str | None = None) -> tuple[list[TableFile], list[str]]:
    """Return the files of a table in order, and the names of other visible files in its folders.

    source: a file, a pattern such as `logs/2026-09-*.csv.gz`, or a folder of part files, also behind a URL. Names that
    start with `_` or `.` are ignored, as Spark writes them beside its parts; so is the file `without`. Folders inside
    the folder must be partitions: `date=2026-09-01`, 2026-09-01 or 20260901.
    Raises TableError for a folder without data files, with files of several formats, or with data in other folders.
    """
    place = place_of(source)
    entries = place.matches()
    files = [one for entry in entries for one in _files_of(place, entry, without)]
    data = [one for one in files if ending(one.name) in KINDS]
    if entries[0].is_folder or len(entries) > 1:
        data = [one for one in data if ending(one.name) != ".json"] or data  # else .json files are metadata
        if not data:
            raise TableError(f"{source} contains no data file ({READABLE}) and is not an LF-* set. Name a file.")
    kinds = {kind_of(one.location) for one in data or files}
    if len(kinds) > 1:
        raise TableError(
            f"{source} contains files of several formats: {_names(one.name for one in data)}. Name one file, "
            "or keep only part files of one format in the folder."
        )
    return data, [one.name for one in files if one not in data]


def table_files(path: Path, without: Path | str | None = None) -> list[Path]:
    """Return the paths of a local table's files, as `find_files`."""
    return [Path(one.location) for one in find_files(path, without)[0]]


def _files_of(place: Place, entry: Entry, without: Path | str | None) -> Iterator[TableFile]:
    """Yield all visible files of a folder and of its partitions; the entry itself if it is a file."""
    parents = {name: value for part in PurePath(entry.name).parts[:-1] for name, value in _of_folder(part).items()}
    if entry.is_folder:
        _refuse_managed(place, entry)
        prefix = "" if entry.name == PurePath(entry.name).name else f"{entry.name}/"
        yield from _walk(place, entry, prefix, parents | _of_folder(PurePath(entry.name).name), without)
    elif not entry.is_missing:
        yield TableFile(entry, place, entry.name, _of_file(entry.name) | parents)


def _walk(
    place: Place, folder: Entry, prefix: str, values: dict[str, str | None], without: Path | str | None
) -> Iterator[TableFile]:
    entries = place.entries(folder)
    inner = [one for one in entries if one.is_folder]
    partitions = {one: _of_folder(one.name) for one in inner}
    refused = [one.name for one in inner if not partitions[one] and _holds_data(place, one)]
    if refused:
        raise TableError(
            f"{folder.location} has data in subfolders ({_names(refused)}), which would not be read. Name one of them, "
            "or name the folders by date, such as date=2026-09-01."
        )
    if broken := [one.name for one in entries if one.is_missing and ending(one.name) in KINDS]:
        raise TableError(
            f"{folder.location} contains links to missing files: {_names(broken)}. Restore the files or remove the "
            "links."
        )
    for one in entries:
        if one.is_folder and partitions[one]:
            yield from _walk(place, one, f"{prefix}{one.name}/", values | partitions[one], without)
        elif not one.is_folder and not one.is_missing and not _same(one, without):
            yield TableFile(one, place, prefix + one.name, _of_file(one.name) | values)


def _of_folder(name: str) -> dict[str, str | None]:
    """Return the column that a folder's name gives: `market` of `market=uk`, `date` of 2026-09-01 and 20260901."""
    column, separator, value = name.partition("=")
    if separator and column:
        return {column: None if value == _HIVE_NULL else unquote(value)}
    return {DATE: day} if _DAY.match(name) and (day := _day(name)) else {}


def _of_file(name: str) -> dict[str, str | None]:
    """Return the date at the end of a file's name, such as clicks-2026-09-01.csv.gz and part_20260901.parquet."""
    return {DATE: day} if (day := _day(stem(name))) else {}


def _day(name: str) -> str | None:
    if not (match := _DAY.search(name)):
        return None
    day = "-".join(match.group(1, 3, 4))
    try:
        return date.fromisoformat(day).isoformat()
    except ValueError:
        return None


def _refuse_managed(place: Place, folder: Entry) -> None:
    """Raise TableError for the folder of a table format that needs more than reading its files."""
    managed = next((name for name in _MANAGED if place.has_folder(folder, name)), None)
    if managed:
        raise TableError(
            f"{folder.location} is a {_MANAGED[managed]} table, whose folder also has files with deleted rows. "
            "Write it as plain Parquet."
        )


def _holds_data(place: Place, folder: Entry) -> bool:
    return any(
        _holds_data(place, one) if one.is_folder else ending(one.name) in KINDS and ending(one.name) != ".json"
        for one in place.entries(folder)
    )


def _same(one: Entry, other: Path | str | None) -> bool:
    if other is None or not isinstance(one.location, Path):
        return other is not None and str(one.location) == str(other)
    return Path(other).exists() and one.location.samefile(other)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")
