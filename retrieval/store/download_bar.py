"""A progress bar for downloads on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBars

from retrieval.system.console import Console
from retrieval.system.progress import Progress


@contextmanager
def download_bar() -> Iterator[Progress]:
    """Show a bar from the first bytes to the end of the download, if standard error is a terminal.

    Yields a function to be called with (bytes present, bytes in all).
    """
    columns = (
        TextColumn("downloading bundle"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    console = Console(stderr=True)
    with ProgressBars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=None, visible=False)
        yield lambda done, total: bars.update(bar, completed=done, total=total, visible=True)
