"""Show the progress of preparing a dataset: a bar on a terminal, lines in a log file."""

import sys
import time
from threading import Lock
from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from retrieval.system.console import Console

SECONDS_PER_LINE = 30.0  # in a log file
SECONDS_PER_STAGE = 5.0  # short runs write no lines


class ProgressBar:
    """The bytes of all source files that were read, on standard error. Several threads may read parts."""

    def __init__(self, total_bytes: int) -> None:
        console = Console(file=sys.stderr)
        self._console, self._total = console, total_bytes
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("reading", total=total_bytes)
        self._lock = Lock()
        self._read = 0
        self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def part(self) -> "PartProgress":
        """Return the progress of one part."""
        return PartProgress(self)

    def describe(self, stage: str) -> None:
        """Name the stage after reading."""
        self._progress.update(self._task, description=stage)
        self._line(stage, after=SECONDS_PER_STAGE)

    def advance(self, description: str, read: int) -> None:
        """Count bytes as read."""
        with self._lock:
            self._read += read
            self._progress.update(self._task, description=description, completed=self._read)
            self._line(f"{description}: {self._read / max(self._total, 1):.0%} of all bytes read", SECONDS_PER_LINE)

    def _line(self, text: str, after: float) -> None:
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > after:
            self._last_line = now
            self._console.print(text, markup=False, highlight=False)


class PartProgress:
    """The progress of one part file."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._read = 0

    def at(self, description: str, bytes_of_file: int) -> None:
        """Show how many bytes of the file were read."""
        self._bar.advance(description, bytes_of_file - self._read)
        self._read = bytes_of_file

    def finish(self, size: int) -> None:
        """Count the file, `size` bytes long, as read."""
        self._bar.advance("reading", size - self._read)
        self._read = 0
