"""What prepare did, as a table for a person."""

from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from training.data.dataset import SPLITS, Dataset, SplitName
from training.prepare.row_counts import LISTED
from training.prepare.writing import SKIPPED

MISSED: dict[SplitName, str] = {
    "train": "Nothing can be learned from it.",
    "validation": "Training chooses its best epoch there: raise --validation or add rows.",
    "test": "There will be no figures on unseen queries: raise --test or add rows.",
}


def show(dataset: Dataset, console: Console) -> None:
    """Print rows, labels and what was left out; everything not zero in the report is named."""
    console.print(Group(_splits(dataset), Text(), _labels(dataset)))
    for name in (name for name in SPLITS if not dataset.meta.splits[name].rows):
        console.print(f"\n{name} has no rows. {MISSED[name]}", markup=False, highlight=False, soft_wrap=True)
    _show_accounts(dataset, console)
    left_out = {what: count for what, count in dataset.meta.report.items() if count}
    if left_out:
        console.print("\nworth knowing")
        for what, count in left_out.items():
            console.print(f"  {count:>12,}  {what}", markup=False, highlight=False, soft_wrap=True)
    if dataset.meta.skipped:
        rows = "1 bad row" if dataset.meta.skipped == 1 else f"{dataset.meta.skipped:,} bad rows"
        where = dataset.folder / SKIPPED
        console.print(f"\n{rows} skipped, listed in {where}:", markup=False, highlight=False, soft_wrap=True)
        for sentence in dataset.meta.skipped_first[:LISTED]:
            console.print(f"  {sentence}", markup=False, highlight=False, soft_wrap=True)


def _show_accounts(dataset: Dataset, console: Console) -> None:
    """Print the row accounts: rows read, written and skipped."""
    for part, account in dataset.meta.accounts.items():
        written = "written" if part == "rows" else "labels"
        where = "" if part == "rows" else "label table: "
        lines = "\n".join(account.report(written))
        console.print(f"\n{where}{lines}", markup=False, highlight=False, soft_wrap=True)


def _splits(dataset: Dataset) -> Table:
    table = Table("split", box=None, padding=(0, 2, 0, 0))
    for heading in ("rows", "positives", "labels a row", "rows without label", "excluded"):
        table.add_column(heading, justify="right")
    for name in SPLITS:
        split = dataset.split(name)
        counts = split.counts()
        scored = max(counts.rows - counts.rows_without_labels, 1)
        table.add_row(
            name, f"{counts.rows:,}", f"{counts.positives:,}", f"{counts.positives / scored:.2f}",
            f"{counts.rows_without_labels:,}", f"{len(split.exclude.values):,}",
        )  # fmt: skip
    return table


def _labels(dataset: Dataset) -> Table:
    count_L = np.bincount(dataset.split("train").labels.values, minlength=dataset.n_labels)
    figures: list[tuple[str, Any]] = [
        ("labels", dataset.n_labels),
        ("  in no training row", int(np.count_nonzero(count_L == 0))),
        ("  in one", int(np.count_nonzero(count_L == 1))),
        ("  in 2 to 5", int(np.count_nonzero((count_L >= 2) & (count_L <= 5)))),
        ("  in more", int(np.count_nonzero(count_L > 5))),
    ]
    attributes = dataset.label_table.column_names[2:]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in figures:
        table.add_row(name, f"{count:,}")
    if attributes:
        table.add_row("attributes", ", ".join(attributes))
    return table
