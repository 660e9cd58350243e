"""Print a summary of a prepared dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from retrieval.tables.notes import TABLE_NOTES, note_lines
from training.data.dataset import SPLITS, Dataset, SplitName
from training.prepare.bad_rows import MAX_LISTED
from training.prepare.writing import SKIPPED

EMPTY_SPLIT: dict[SplitName, str] = {
    "train": "There is nothing to train on.",
    "validation": "Training needs it to choose the best epoch: raise --validation or add rows.",
    "test": "Quality on unseen queries cannot be measured: raise --test or add rows.",
}
# The text of each key of `notes` in dataset.json.
NOTES: Mapping[str, str] = {
    **TABLE_NOTES,
    "excluded_labels_removed": "excluded labels removed from the labels of their row",
    "excluded_texts_without_label": "excluded labels that are not a label of any row",
    "labels_with_key_as_text": "labels whose text is their {name!r}; --label-text names another column",
    "merged_spellings": "spellings of a query merged with the most frequent one (case, spaces, invisible characters)",
    "more_clicks_than_impressions": "rows with more clicks than impressions",
    "positions_not_used": "position columns without effect: examination cannot be estimated; see --examination",
    "positives_of_rare_labels": "positives removed with labels below --min-label-count",
    "queries_read_alike": "queries that the encoder reads like another one (case, accents)",
    "queries_without_label_removed": "queries without a label, left out of training",
    "rare_labels": "labels below --min-label-count",
    "reciprocal_pairs_removed": "reciprocal pairs excluded from validation rows, as test rows exclude theirs",
    "targets_of_relevance_0": "targets with relevance 0",
    "targets_of_skipped_labels": "targets that name a skipped label",
    "test_queries_in_training": "test queries that are also a training query",
    "unknown_excluded_labels": "excluded labels that are not in the label table",
    "unused_columns": "rows with the column {name!r}, which is not used",
}


def show(dataset: Dataset, console: Console) -> None:
    """Print sizes, row counts, notes, and the first messages about bad rows."""
    console.print(Group(_splits(dataset), Text(), _labels(dataset)))
    for name in SPLITS:
        if not dataset.meta.splits[name].rows:
            _print(console, f"\n{name} has no rows. {EMPTY_SPLIT[name]}")
    for part, account in dataset.meta.accounts.items():
        source, written = ("", "written") if part == "rows" else ("label table: ", "labels")
        _print(console, "\n" + source + "\n".join(account.report(written)))
    if lines := note_lines(dataset.meta.notes, NOTES):
        _print(console, "\nnotes")
        for count, text in lines:
            _print(console, f"  {count:>12,}  {text}")
    if dataset.meta.skipped:
        rows = "1 bad row" if dataset.meta.skipped == 1 else f"{dataset.meta.skipped:,} bad rows"
        _print(console, f"\n{rows} skipped, listed in {dataset.folder / SKIPPED}:")
        for message in dataset.meta.skipped_first[:MAX_LISTED]:
            _print(console, f"  {message}")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _splits(dataset: Dataset) -> Table:
    table = Table("split", box=None, padding=(0, 2, 0, 0))
    for heading in ("rows", "positives", "per row", "rows without label", "excluded labels"):
        table.add_column(heading, justify="right")
    for name in SPLITS:
        split = dataset.split(name)
        counts = split.counts()
        labelled = max(counts.rows - counts.rows_without_labels, 1)
        table.add_row(
            name, f"{counts.rows:,}", f"{counts.positives:,}", f"{counts.positives / labelled:.2f}",
            f"{counts.rows_without_labels:,}", f"{len(split.exclude.values):,}",
        )  # fmt: skip
    return table


def _labels(dataset: Dataset) -> Table:
    count_L = np.bincount(dataset.split("train").labels.values, minlength=dataset.n_labels)
    lines: list[tuple[str, Any]] = [
        ("labels", dataset.n_labels),
        ("  in no training row", int(np.count_nonzero(count_L == 0))),
        ("  in 1", int(np.count_nonzero(count_L == 1))),
        ("  in 2 to 5", int(np.count_nonzero((count_L >= 2) & (count_L <= 5)))),
        ("  in 6 or more", int(np.count_nonzero(count_L > 5))),
    ]
    attributes = dataset.label_table.column_names[2:]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in lines:
        table.add_row(name, f"{count:,}")
    if attributes:
        table.add_row("attributes", ", ".join(attributes))
    return table
