"""List and open the files of a table, on disk or behind a URL."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from retrieval.errors import BadInput, TableError, Unreachable, one_line
from retrieval.system.urls import as_url, file_system

MAGIC = "*?["


@dataclass(frozen=True)
class Entry:
    """A file or folder. `name`: the last part of its path; after a pattern, its path below the pattern's folder."""

    location: Path | str
    name: str
    is_folder: bool
    size: int = 0
    is_missing: bool = False  # a link to a file that does not exist


class Place(Protocol):
    """A file system."""

    def matches(self) -> list[Entry]:
        """Return the source itself, or all files and folders that match its pattern, in order. Raises TableError."""

    def entries(self, folder: Entry) -> list[Entry]:
        """Return the visible content of a folder, in order."""

    def has_folder(self, folder: Entry, name: str) -> bool:
        """Return whether a folder contains this folder."""

    def open(self, entry: Entry) -> BinaryIO:
        """Open a file."""

    def stamp(self, entry: Entry) -> list[Any]:
        """Return values that differ after the file has changed."""


def place_of(source: Path | str) -> Place:
    """Return the file system of a path or URL. Raises TableError if its driver is missing."""
    return LocalPlace(Path(source)) if (url := as_url(source)) is None else RemotePlace(url)


class LocalPlace:
    """Paths on this machine, which need not be UTF-8."""

    def __init__(self, source: Path) -> None:
        """`source`: a path or a pattern."""
        self._source = source

    def matches(self) -> list[Entry]:
        """Return the source itself, or all files and folders that match its pattern, in order. Raises TableError."""
        source, text = self._source, str(self._source)
        if source.exists() or not any(one in text for one in MAGIC):
            if not source.exists():
                raise TableError(f"{source} does not exist. Check the path.")
            if not source.is_dir() and not source.is_file():
                raise TableError(f"{source} is not a regular file. Name a file.")
            return [_local(source, source.name or source.resolve().name)]
        fixed = _fixed_folder(text)
        paths = [Path(one) for one in sorted(glob.glob(text, recursive=True))]
        matches = [_local(one, os.path.relpath(one, fixed or ".")) for one in paths if _is_visible(one.name)]
        return _outermost(text, matches)

    def entries(self, folder: Entry) -> list[Entry]:
        """Return the visible content of a folder, in order."""
        return [_local(one, one.name) for one in sorted(Path(folder.location).iterdir()) if _is_visible(one.name)]

    def has_folder(self, folder: Entry, name: str) -> bool:
        """Return whether a folder contains this folder."""
        return Path(folder.location, name).is_dir()

    def open(self, entry: Entry) -> BinaryIO:
        """Open a file."""
        return Path(entry.location).open("rb")

    def stamp(self, entry: Entry) -> list[Any]:
        """Return values that differ after the file has changed."""
        path = Path(entry.location)
        status = path.stat()
        return [str(path.resolve()), status.st_size, status.st_mtime_ns]


class RemotePlace:
    """Files behind a URL with an fsspec driver."""

    def __init__(self, url: str) -> None:
        """`url`: a URL or a pattern."""
        self._url = url
        try:
            self._files, self._root = file_system(url)
        except (BadInput, Unreachable) as error:
            raise TableError(str(error)) from error
        self._files.invalidate_cache()

    def matches(self) -> list[Entry]:
        """Return the source itself, or all files and folders that match its pattern, in order. Raises TableError."""
        with _driver_errors(self._url):
            if not any(one in self._root for one in MAGIC) or self._files.exists(self._root):
                info = self._files.info(self._root)
                return [self._entry(info, self._root.rpartition("/")[2])]
            fixed = _fixed_folder(self._root)
            listed = sorted(self._files.glob(self._root, detail=True).items())
            matches = [self._entry(info, name.removeprefix(f"{fixed}/")) for name, info in listed]
        return _outermost(self._url, [one for one in matches if _is_visible(one.name.rpartition("/")[2])])

    def entries(self, folder: Entry) -> list[Entry]:
        """Return the visible content of a folder, in order."""
        with _driver_errors(str(folder.location)):
            infos = self._files.ls(self._files._strip_protocol(str(folder.location)), detail=True)
        entries = [self._entry(info, info["name"].rstrip("/").rpartition("/")[2]) for info in infos]
        return sorted((one for one in entries if _is_visible(one.name)), key=lambda one: one.name)

    def has_folder(self, folder: Entry, name: str) -> bool:
        """Return whether a folder contains this folder."""
        return bool(self._files.isdir(f"{self._files._strip_protocol(str(folder.location))}/{name}"))

    def open(self, entry: Entry) -> BinaryIO:
        """Open a file."""
        with _driver_errors(str(entry.location)):
            opened: BinaryIO = self._files.open(str(entry.location), "rb")
            return opened

    def stamp(self, entry: Entry) -> list[Any]:
        """Return values that differ after the file has changed."""
        with _driver_errors(str(entry.location)):
            self._files.invalidate_cache()
            return [entry.location, self._files.info(str(entry.location))["size"], self._files.ukey(entry.location)]

    def _entry(self, info: dict[str, Any], name: str) -> Entry:
        location = self._files.unstrip_protocol(info["name"].rstrip("/"))
        return Entry(location, name, info["type"] == "directory", info["size"] or 0)


@contextmanager
def _driver_errors(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise TableError(f"{url} does not exist. Check the path.") from error
    except Exception as error:  # drivers have their own classes
        raise TableError(
            f"{url} cannot be read ({one_line(error)[:200] or type(error).__name__}). "
            "Check the URL, and the credentials in the environment."
        ) from error


def _local(path: Path, name: str) -> Entry:
    if not path.exists():
        return Entry(path, name, is_folder=False, is_missing=True)
    return Entry(path, name, path.is_dir(), path.stat().st_size)


def _outermost(pattern: str, matches: list[Entry]) -> list[Entry]:
    """Return the entries without those inside a matching folder. Raises TableError if there is none."""
    folders = {f"{one.name}/" for one in matches if one.is_folder}
    outermost = [one for one in matches if not any(one.name.startswith(folder) for folder in folders)]
    if not outermost:
        raise TableError(f"{pattern} matches no file. Check the pattern.")
    return outermost


def _fixed_folder(pattern: str) -> str:
    """Return the folders before the first part of a path that has a wildcard."""
    parts = pattern.split("/")
    return "/".join(parts[: next(place for place, part in enumerate(parts) if any(one in part for one in MAGIC))])


def _is_visible(name: str) -> bool:
    return not name.startswith(("_", "."))
