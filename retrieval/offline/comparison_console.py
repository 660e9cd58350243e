"""Print the comparison of two bundles."""

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from retrieval.offline.comparison import BundleComparison, ChangedQuery
from retrieval.system.console import Console

LABELS_PER_CELL = 5  # removed or added labels


def print_comparison(comparison: BundleComparison, most: int) -> None:
    """Print the shares, the metrics if true labels are known, and the `most` queries that changed most."""
    console, (old, new) = Console(markup=False, highlight=False), comparison.names
    console.print(f"{comparison.queries:,} queries, first {comparison.k} labels, {old} compared with {new}")
    shares = Table(box=SIMPLE, show_header=False)
    shares.add_row(f"labels that both return (overlap@{comparison.k})", f"{comparison.overlap:.1%}")
    shares.add_row("queries with the same first label", f"{comparison.same_first:.1%}")
    shares.add_row("queries with the same labels in the same order", f"{comparison.same:.1%}")
    console.print(shares)
    if comparison.metrics is not None:
        metrics = Table("", old, new, "difference", box=SIMPLE)
        for metric, (before, after) in comparison.metrics.items():
            metrics.add_row(metric, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
        console.print(metrics)
    if comparison.changed and most:
        console.print(_changed_queries(comparison.changed[:most], len(comparison.changed)))


def _changed_queries(changes: tuple[ChangedQuery, ...], total: int) -> Table:
    title = Text(f"{len(changes)} of {total:,} queries with different labels, most changed first")
    table = Table("query", "removed", "added", title=title, title_justify="left", box=SIMPLE)
    for change in changes:
        table.add_row(*(Text(cell) for cell in (change.query, _labels(change.removed), _labels(change.added))))
    return table


def _labels(texts: tuple[str, ...]) -> str:
    more = f", … {len(texts) - LABELS_PER_CELL} more" if len(texts) > LABELS_PER_CELL else ""
    return ", ".join(texts[:LABELS_PER_CELL]) + more
