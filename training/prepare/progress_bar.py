"""Show the progress of reading source files."""

import sys
from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from retrieval.system.console import Console


class ProgressBar:
    """A progress bar over the bytes of all source files, on standard error if that is a terminal."""

    def __init__(self, total_bytes: int) -> None:
        console = Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("reading", total=total_bytes)
        self._bytes_before = 0

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def at(self, description: str, bytes_of_file: int) -> None:
        """Show how many bytes of the current file were read."""
        self._progress.update(self._task, description=description, completed=self._bytes_before + bytes_of_file)

    def finish(self, size: int) -> None:
        """Count the current file, `size` bytes long, as read."""
        self._bytes_before += size
