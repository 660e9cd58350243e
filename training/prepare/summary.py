"""Summarize a prepared dataset for its user: in the terminal, and in dataset.html."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from retrieval.tables.notes import TABLE_NOTES, note_lines
from retrieval.tables.values import preview
from training.data.dataset import SPLITS, Dataset, SplitName
from training.data.meta import DatasetMeta
from training.data.statistics import DatasetStatistics, KnownShares, dataset_statistics, missing_days
from training.pages import DATASET_PAGE
from training.pages.dataset_page import DatasetTexts, Setting, write_dataset_page
from training.prepare.commands import prepare
from training.prepare.settings import PrepareSettings
from training.prepare.writing import RENAMED, SKIPPED

BAD_ROWS_SHOWN = 3
COLUMN = "_column"  # the end of identifiers of columns
DAYS_SHOWN = 5
# Defaults that the summary names: for splits that were cut by share, for a dataset with weights, and for one with days.
DEFAULTS_OF_SHARES = ("test", "validation")
OTHER_SPLITS = ("split_column", "test_from", "test_days")  # settings that replace the shares
DEFAULTS_OF_WEIGHTS = ("min_clicks", "min_ctr")
DEFAULTS_OF_DAYS = ("half_life_days",)
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


def show(dataset: Dataset, console: Console, *, written: bool, settings_file: str | None = None) -> None:
    """Write dataset.html if the dataset is new or has none, and print the summary.

    settings_file: the `source.yaml` from which options were read.
    """
    statistics, texts = dataset_statistics(dataset), dataset_texts(dataset.meta)
    page = dataset.folder / DATASET_PAGE
    if written or not page.is_file():
        write_dataset_page(dataset, statistics, texts)
    state = "written to" if written else "is up to date in"
    _print(console, f"dataset {dataset.meta.name!r} {state} {dataset.folder}")
    if settings_file:
        _print(console, f"options were read from {settings_file}")
    for part in _parts(dataset, statistics, texts):
        console.print()
        console.print(Group(part), highlight=False, crop=False)  # without the group, a Text would be wrapped
    _print(console, f"\nCharts, random rows and all settings: {page}")


def dataset_texts(meta: DatasetMeta) -> DatasetTexts:
    """Return the warnings, notes and settings of a dataset as texts."""
    return DatasetTexts(tuple(_warnings(meta)), note_lines(meta.notes, NOTES), _settings(meta))


def _warnings(meta: DatasetMeta) -> Iterator[str]:
    for name in SPLITS:
        if not meta.splits[name].rows:
            yield f"{name} has no rows. {EMPTY_SPLIT[name]}"
    missing, first = missing_days(meta.days, DAYS_SHOWN)
    if missing:
        days = "1 day has" if missing == 1 else f"{missing:,} days have"
        more = ", …" if missing > len(first) else ""
        yield f"{days} no rows: {', '.join(first)}{more}. Check that the source has all files and that dates are right."


def _settings(meta: DatasetMeta) -> list[Setting]:
    """Return the options of `diptych prepare` with their values and help texts."""
    hints = get_type_hints(prepare, include_extras=True)
    defaults = {key: field.default for key, field in PrepareSettings.model_fields.items()}
    settings = []
    for key, value in meta.settings.items():
        if key in defaults and key in hints:
            # A help text ends in its default: "Days of test; default: 1."
            description, _, default = (hints[key].__metadata__[0].help or "").partition("; default")
            not_set = default.strip(" :.") or "not set"
            option, text = f"--{key.replace('_', '-')}", _text(value, not_set)
            settings.append(Setting(option, text, _text(defaults[key], not_set), description.rstrip(".") + "."))
    return settings


def _text(value: Any, not_set: str) -> str:
    if value is None or value in ((), []):
        return not_set
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- parts of the summary, the most important first


def _parts(dataset: Dataset, statistics: DatasetStatistics, texts: DatasetTexts) -> Iterator[RenderableType]:
    meta = dataset.meta
    if texts.warnings:
        yield _lines([f"warning: {warning}" for warning in texts.warnings], style="bold")
    lines: list[str] = []
    for part, account in meta.accounts.items():
        source, written = ("", "written") if part == "rows" else ("label table: ", "labels")
        first, *others = account.report(written)
        lines += [source + first, *others]
    yield _lines(lines)
    if meta.skipped:
        yield _bad_rows(dataset)
    yield _splits(statistics)
    if statistics.known:
        yield _known(statistics.known)
    yield _labels(dataset, statistics)
    if texts.notes:
        yield _lines(["notes", *(f"  {count:>12,}  {text}" for count, text in texts.notes)])
    if meta.detected:
        yield _pairs(_detected(meta))
    if defaults := _defaults(meta, texts, statistics):
        yield Text(f"defaults in force: {', '.join(defaults)}")


def _bad_rows(dataset: Dataset) -> Text:
    meta = dataset.meta
    rows = "1 bad row" if meta.skipped == 1 else f"{meta.skipped:,} bad rows"
    messages = (f"  {message}" for message in meta.skipped_first[:BAD_ROWS_SHOWN])
    return _lines([f"{rows} skipped, listed in {dataset.folder / SKIPPED}:", *messages])


def _splits(statistics: DatasetStatistics) -> Table:
    splits = statistics.splits.values()
    headings = {
        "rows": True, "positives": True, "per row": True, "weight": statistics.weighted,
        "first day": statistics.dated, "last day": statistics.dated,
        "rows without label": any(split.counts.rows_without_labels for split in splits),
        "excluded labels": any(split.excluded for split in splits),
    }  # fmt: skip
    table = _table("split", *(heading for heading, shown in headings.items() if shown))
    for name, split in statistics.splits.items():
        counts = split.counts
        labelled = max(counts.rows - counts.rows_without_labels, 1)
        cells = (
            f"{counts.rows:,}", f"{counts.positives:,}", f"{counts.positives / labelled:.2f}",
            f"{split.weight or 0:,.0f}", split.first_day or "–", split.last_day or "–",
            f"{counts.rows_without_labels:,}", f"{split.excluded:,}",
        )  # fmt: skip
        table.add_row(name, *(cell for cell, shown in zip(cells, headings.values(), strict=True) if shown))
    return table


def _known(known: KnownShares) -> Table:
    shares = (known.queries, known.labels, known.both)
    table = _table("test pairs", "known query", "known label", "both")
    if shares[0].weight is not None:
        table.add_row("  by weight", *(f"{100 * (share.weight or 0):.1f} %" for share in shares))
    table.add_row("  each pair once", *(f"{100 * share.pairs:.1f} %" for share in shares))
    return table


def _labels(dataset: Dataset, statistics: DatasetStatistics) -> RenderableType:
    meta, groups = dataset.meta, statistics.label_groups()
    table = _table("training positives", *(group.name for group in groups))
    table.add_row("labels", *(f"{group.labels:,}" for group in groups))
    lines = [f"{meta.labels:,} labels"]
    if attributes := dataset.label_table.column_names[2:]:
        lines[0] += f" with {', '.join(attributes)}"
    if meta.renames:
        lines.append(f"{meta.renames:,} of them were renamed and have their latest text")
        if meta.renames_first:
            first = meta.renames_first[0]
            lines[-1] += f", such as {preview(first.before)} → {preview(first.now)}; see {RENAMED}"
    if statistics.exposures:
        pairs, impressions = map(sum, zip(*statistics.exposures.values(), strict=True))
        lines.append(f"{pairs:,} exposures (shown, not clicked) with {impressions:,} impressions")
    return Group(_lines(lines), table)


def _defaults(meta: DatasetMeta, texts: DatasetTexts, statistics: DatasetStatistics) -> list[str]:
    """Return option and value of the defaults that matter for this dataset."""
    by_share = not any(meta.settings.get(name) or meta.detected.get(name) for name in OTHER_SPLITS)
    names = [*DEFAULTS_OF_SHARES] if by_share else []
    names += DEFAULTS_OF_WEIGHTS if statistics.weighted else ()
    names += DEFAULTS_OF_DAYS if statistics.dated else ()
    options = [f"--{name.replace('_', '-')}" for name in names]
    return [
        f"{setting.option} {setting.value}"
        for setting in texts.settings
        if setting.option in options and not setting.changed
    ]


def _detected(meta: DatasetMeta) -> dict[str, str]:
    """Return two lines: the columns, and the format."""
    lines: dict[str, list[str]] = {"columns": [], "format": []}
    for name, value in meta.detected.items():
        line = "columns" if name.endswith(COLUMN) else "format"
        name = name.removesuffix(COLUMN).replace("_", " ")
        lines[line].append(value if value.startswith(f"{name} (") else f"{name}: {value}")
    return {name: ", ".join(values) for name, values in lines.items() if values}


def _lines(lines: Sequence[str], style: str = "") -> Text:
    """Return lines that are not wrapped, so that they can be searched and copied."""
    return Text("\n".join(lines), style, no_wrap=True, overflow="ignore")


def _pairs(values: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for name, value in values.items():
        grid.add_row(name, value)
    return grid


def _table(first: str, *headings: str) -> Table:
    table = Table(first, box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
