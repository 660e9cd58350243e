"""How two bundles differ, as a person reads it."""

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from retrieval.offline.comparison import Difference, Moved
from retrieval.system.console import Console

SHOWN = 5  # labels that left or entered


def show(found: Difference, most: int) -> None:
    """Print the shares, the figures where truths are known, and the `most` queries that changed most."""
    console, (one, other) = Console(markup=False, highlight=False), found.names
    console.print(f"{found.queries:,} queries, first {found.k} labels, from {one} to {other}")
    shares = Table(box=SIMPLE, show_header=False)
    shares.add_row(f"labels that both give (overlap@{found.k})", f"{found.overlap:.1%}")
    shares.add_row("queries with the same first label", f"{found.same_first:.1%}")
    shares.add_row("queries with the same answer", f"{found.same:.1%}")
    console.print(shares)
    if found.figures is not None:
        figures = Table("", one, other, "difference", box=SIMPLE)
        for metric, (before, after) in found.figures.items():
            figures.add_row(metric, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
        console.print(figures)
    if found.moved and most:
        console.print(_moved(found.moved[:most], len(found.moved)))


def _moved(shown: tuple[Moved, ...], of: int) -> Table:
    title = Text(f"{len(shown)} of {of:,} queries whose labels changed, most first")
    table = Table("query", "left", "entered", title=title, title_justify="left", box=SIMPLE)
    for change in shown:
        table.add_row(*(Text(cell) for cell in (change.query, _labels(change.left), _labels(change.entered))))
    return table


def _labels(texts: tuple[str, ...]) -> str:
    more = f", … {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
