"""Find the files of a table: one file, or a folder of part files of one kind."""

from collections.abc import Iterable
from pathlib import Path

from retrieval.errors import TableError

JSON_LINES, DELIMITED, PARQUET = "JSON Lines", "CSV or TSV", "Parquet"
# Spark writes JSON Lines as .json.
KINDS = {
    ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".csv": DELIMITED, ".tsv": DELIMITED, ".parquet": PARQUET,
    ".json": JSON_LINES,
}  # fmt: skip
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
READABLE = ", ".join(KINDS)
# Folders of these formats also contain files with deleted or replaced rows.
_MANAGED = {"_delta_log": "Delta Lake", ".hoodie": "Hudi", "metadata": "Iceberg"}


def compression(path: Path) -> str:
    """Return the suffix that names a compression, in lower case; empty without one."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def ending(path: Path) -> str:
    """Return the suffix that names the format, in lower case: `.jsonl` of `Keywords.JSONL.xz`."""
    return Path(path.name[: len(path.name) - len(compression(path))]).suffix.lower()


def stem(path: Path) -> str:
    """Return the file's name without its format and compression suffixes: `keywords` of `keywords.jsonl.xz`."""
    return path.name[: len(path.name) - len(compression(path))].rsplit(".", 1)[0]


def kind_of(path: Path) -> str:
    """Return the kind of a file by its name. Raises TableError for an unknown one."""
    kind = KINDS.get(ending(path))
    if kind is None:
        raise TableError(
            f"{path} has none of the endings {READABLE} (also with {', '.join(COMPRESSIONS)}). Convert or rename it."
        )
    return kind


def require_file(path: Path) -> None:
    """Raise TableError if the file does not exist or is not a regular file."""
    if not path.exists():
        raise TableError(f"{path} does not exist. Check the path.")
    if not path.is_file():
        raise TableError(f"{path} is not a regular file. Name a file.")


def table_files(path: Path, without: Path | None = None) -> list[Path]:
    """Return the files of a table in order: `path` itself, or the part files in the folder `path`.

    Names that start with `_` or `.` are ignored, as Spark writes them beside its parts; so is the file `without`.
    Raises TableError for a folder without data files, with files of several formats, or with data in subfolders.
    """
    if not path.is_dir():
        require_file(path)
        kind_of(path)
        return [path]
    _refuse_more_than_parts(path)
    files = [one for one in _visible(path) if one.is_file() and ending(one) in KINDS and not _same(one, without)]
    files = [one for one in files if ending(one) != ".json"] or files  # next to other data, .json files are metadata
    if not files:
        raise TableError(f"{path} contains no data file ({READABLE}) and is not an LF-* set. Name a file.")
    kinds = {KINDS[ending(one)] for one in files}
    if len(kinds) > 1:
        raise TableError(
            f"{path} contains files of several formats: {_names(one.name for one in files)}. Name one file, "
            "or keep only part files of one format in the folder."
        )
    return files


def unread_files(path: Path, files: list[Path], without: Path | None = None) -> list[str]:
    """Return the names of a folder's visible files that are none of `files` and not `without`."""
    others = _visible(path) if path.is_dir() else []
    return [one.name for one in others if one.is_file() and one not in files and not _same(one, without)]


def _refuse_more_than_parts(path: Path) -> None:
    """Raise TableError for a folder that needs more than reading its files."""
    if managed := next((table_format for name, table_format in _MANAGED.items() if (path / name).is_dir()), None):
        raise TableError(
            f"{path} is a {managed} table, whose folder also has files with deleted rows. Write it as plain Parquet."
        )
    inner = [one.name for one in _visible(path) if one.is_dir() and ("=" in one.name or _holds_data(one))]
    if inner:
        raise TableError(
            f"{path} has data in subfolders ({_names(inner)}), which would not be read. Name one of them, "
            "or write the table into one folder without partitions."
        )
    if broken := [one.name for one in _visible(path) if ending(one) in KINDS and not one.exists()]:
        raise TableError(
            f"{path} contains links to missing files: {_names(broken)}. Restore the files or remove the links."
        )


def _visible(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if not one.name.startswith(("_", ".")))


def _holds_data(folder: Path) -> bool:
    return any(ending(one) in KINDS and ending(one) != ".json" and one.is_file() for one in folder.rglob("*"))


def _same(one: Path, other: Path | None) -> bool:
    return other is not None and other.exists() and one.samefile(other)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")
