"""How the command line shows a bundle on its way here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from retrieval.system.console import Console


@contextmanager
def download_bar() -> Iterator[Callable[[int, int], object]]:
    """A bar that appears with the first bytes and is gone at the end; nothing is shown where there is no terminal."""
    columns = (
        TextColumn("fetching the bundle"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=None, visible=False)
        yield lambda done, total: bars.update(bar, completed=done, total=total, visible=True)
