"""A progress bar over source files, and their SHA-256."""

import hashlib
import sys
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from retrieval.system.console import Console


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


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
