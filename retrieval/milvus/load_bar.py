"""A progress bar for filling a collection on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars

from retrieval.system.console import Console
from retrieval.system.progress import Progress


@contextmanager
def load_bar() -> Iterator[Progress]:
    """Show a bar while vectors are sent, if standard error is a terminal; yields a function as `Progress` describes."""
    columns = (TextColumn("sending vectors"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with ProgressBars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=None, visible=False)
        yield lambda done, total: bars.update(bar, completed=done, total=total, visible=True)
