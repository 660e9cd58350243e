"""Source files: opened whatever their compression, read line by line, with a progress bar that knows its end."""

import bz2
import gzip
import hashlib
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from retrieval.errors import DatasetError

MAX_LINE_BYTES = 64 * 2**20
LINES_BETWEEN_TICKS = 2_000
_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


class Meter:
    """A progress bar over the bytes of all source files, on standard error; silent where that is no terminal."""

    def __init__(self, total_bytes: int) -> None:
        console = Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("reading", total=total_bytes)
        self._done_before = 0

    def __enter__(self) -> "Meter":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def at(self, description: str, bytes_of_file: int) -> None:
        """Show how far into the present file reading is."""
        self._progress.update(self._task, description=description, completed=self._done_before + bytes_of_file)

    def finish(self, size: int) -> None:
        """The present file, `size` bytes long, is read."""
        self._done_before += size


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file's content and the raw file below it (to see how far reading is); DatasetError when it cannot be read."""
    require_file(path)
    try:
        with path.open("rb") as raw:
            opener = _OPENERS.get(path.suffix)
            yield (opener(raw) if opener else raw), raw
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        kind = path.suffix.removeprefix(".")
        raise DatasetError(f"{path} is cut off or no {kind} file ({error}). Fetch or write it again.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error


def require_file(path: Path) -> None:
    """DatasetError when the file is missing, a folder, or holds no byte."""
    if not path.exists():
        raise DatasetError(f"{path} does not exist. Check the path.")
    if not path.is_file():
        raise DatasetError(f"{path} is not a file. Name the file itself.")
    if path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty. Give a file with rows.")


def lines(path: Path, meter: Meter) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number counted from 1 and without its line end or a leading BOM."""
    with opened(path) as (content, raw):
        number = 0
        while line := content.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DatasetError(
                    f"{path} line {number} is longer than {MAX_LINE_BYTES // 2**20} MB. Write one record a line."
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if number % LINES_BETWEEN_TICKS == 1:
                meter.at(path.name, raw.tell())
            if line := line.strip():
                yield number, line
    meter.finish(path.stat().st_size)


def stem(path: Path) -> str:
    """The file's name without its data and compression suffixes: `keywords` of `keywords.jsonl.xz`."""
    return path.name.removesuffix(compression(path)).rsplit(".", 1)[0]


def kind(path: Path) -> str:
    """The suffix that tells the format, in small letters: `.jsonl` of `keywords.jsonl.xz`."""
    return Path(path.name.removesuffix(compression(path))).suffix.lower()


def compression(path: Path) -> str:
    """The suffix that tells the compression, empty where there is none."""
    return path.suffix if path.suffix in _OPENERS else ""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
