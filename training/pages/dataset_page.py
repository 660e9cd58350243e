"""Write dataset.html: one page about a prepared dataset, in its folder.

The page depends on the dataset only, so the same dataset gives the same bytes.

Shapes: N drawn rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.system.atomic_files import write_text
from training.data.dataset import SPLITS, Dataset, Split, SplitName
from training.data.meta import DatasetMeta, Period
from training.data.split import take_rows
from training.data.statistics import MOST_WORDS, DatasetStatistics
from training.pages import DATASET_PAGE
from training.pages.charts import column_chart, line_chart
from training.pages.page import render

RANDOM_ROWS, RANDOM_ROWS_OF_OTHER_SPLITS = 20, 5
LABELS_SHOWN = 8  # per row
RENAMES_SHOWN = 20
MAX_COLUMNS = 366  # of the charts of days
POINTS = 60  # of the curve of label frequencies
SEED = 0
CURVES: dict[SplitName, str] = {"train": "unified", "validation": "dual_encoder", "test": "classifier"}


@dataclass(frozen=True)
class Setting:
    """An option of `diptych prepare`: its value in the dataset, its default, and its description."""

    option: str
    value: str
    default: str
    description: str

    @property
    def changed(self) -> bool:
        """Return whether the value differs from the default."""
        return self.value != self.default


@dataclass(frozen=True)
class DatasetTexts:
    """Texts for the reader of a dataset: warnings, notes with their counts, and settings."""

    warnings: Sequence[str] = ()
    notes: Sequence[tuple[int, str]] = ()
    settings: Sequence[Setting] = ()


@dataclass(frozen=True)
class RandomRow:
    """A query with its true labels and their weights (None: no weights), the largest first."""

    split: SplitName
    text: str
    labels: list[tuple[str, float | None]]
    excluded: int


def write_dataset_page(dataset: Dataset, statistics: DatasetStatistics, texts: DatasetTexts) -> Path:
    """Write dataset.html into the dataset's folder and return its path. Raises OSError."""
    path = dataset.folder / DATASET_PAGE
    write_text(path, dataset_page(dataset, statistics, texts))
    return path


def dataset_page(dataset: Dataset, statistics: DatasetStatistics, texts: DatasetTexts) -> str:
    """Return the page as HTML."""
    meta = dataset.meta
    totals = [split.counts for split in statistics.splits.values()]
    return render(
        "training.pages", DATASET_PAGE, meta=meta, statistics=statistics, texts=texts, curves=CURVES,
        queries=sum(counts.rows for counts in totals), positives=sum(counts.positives for counts in totals),
        label_chart=_label_chart(statistics), length_chart=_length_chart(statistics), day_charts=_day_charts(meta),
        attributes=dataset.label_table.column_names[2:], rows=random_rows(dataset), labels_shown=LABELS_SHOWN,
        renames=meta.renames_first[:RENAMES_SHOWN],
    )  # fmt: skip


# ---- charts


def _label_chart(statistics: DatasetStatistics) -> str:
    """Draw training positives against the rank of the label, both on logarithmic axes."""
    sorted_L = np.sort(statistics.label_positives_L)[::-1]
    sorted_L = sorted_L[sorted_L > 0]
    ranks = np.unique(np.geomspace(1, len(sorted_L), POINTS).astype(np.int64))
    points = [(float(rank), float(sorted_L[rank - 1])) for rank in ranks]
    return line_chart("Training positives", {"unified": points}, "rank of the label", logarithmic=True)


def _length_chart(statistics: DatasetStatistics) -> str:
    names = [str(words) for words in range(1, MOST_WORDS)] + [f"{MOST_WORDS}+"]
    counts = statistics.queries_by_words.tolist()
    return column_chart("Queries", dict(zip(names, counts, strict=True)), "words")


def _day_charts(meta: DatasetMeta) -> dict[str, str]:
    """Draw clicks, positives and rows per day (of a long log: per month or year), in the colour of the day's split."""
    if not meta.days:
        return {}
    unit, name = _unit(list(meta.days))
    present = np.unique(np.array(list(meta.days), f"M8[{unit}]"))
    # a wrong date may be thousands of years away: years without rows are left out
    periods = present if unit == "Y" else np.arange(present[0], present[-1] + 1)
    totals = {str(period): np.zeros(3) for period in periods}
    for day, counts in meta.days.items():
        totals[str(np.datetime64(day, unit))] += (counts.clicks, counts.positives, counts.rows)
    groups = [CURVES[_split_of(meta, period)] for period in totals]
    return {
        f"{value} per {name}": column_chart(
            f"{value} per {name}", {period: float(total[place]) for period, total in totals.items()}, name, groups
        )
        for place, value in enumerate(("Clicks", "Positives", "Rows"))
    }


def _unit(days: Sequence[str]) -> tuple[Literal["D", "M", "Y"], str]:
    """Return the shortest unit with at most MAX_COLUMNS columns, and its name."""
    first, last = np.datetime64(min(days), "D"), np.datetime64(max(days), "D")
    if last - first < np.timedelta64(MAX_COLUMNS, "D"):
        return "D", "day"
    months = last.astype("M8[M]") - first.astype("M8[M]")
    return ("M", "month") if months < np.timedelta64(MAX_COLUMNS, "M") else ("Y", "year")


def _split_of(meta: DatasetMeta, period: str) -> SplitName:
    """Return the split of a day; of a month or year, the split of its first day."""
    day = str(np.datetime64(period, "D"))
    starts = meta.period or Period()
    if starts.test_from and day >= starts.test_from:
        return "test"
    return "validation" if starts.validation_from and day >= starts.validation_from else "train"


# ---- random rows


def random_rows(dataset: Dataset) -> list[RandomRow]:
    """Draw RANDOM_ROWS rows: RANDOM_ROWS_OF_OTHER_SPLITS each of validation and test, the others from train."""
    draw = np.random.default_rng(SEED)
    splits = {name: dataset.split(name) for name in SPLITS}
    sizes = {name: min(RANDOM_ROWS_OF_OTHER_SPLITS, len(splits[name])) for name in SPLITS[1:]}
    sizes = {"train": min(RANDOM_ROWS - sum(sizes.values()), len(splits["train"])), **sizes}
    return [
        row
        for name, split in splits.items()
        for row in _rows(dataset, name, split, np.sort(draw.choice(len(split), sizes[name], replace=False)))
    ]


def _rows(dataset: Dataset, name: SplitName, split: Split, rows_N: NDArray[np.int64]) -> list[RandomRow]:
    part = split.take(rows_N)
    texts = take_rows(dataset.label_table["text"], part.labels.values).to_pylist()
    weights: list[float | None] = [None] * len(texts) if part.weights_V is None else part.weights_V.tolist()
    pairs = list(zip(texts, weights, strict=True))
    bounds = part.labels.offsets
    return [
        RandomRow(name, text, _heaviest_first(pairs[bounds[row] : bounds[row + 1]]), len(part.exclude[row]))
        for row, text in enumerate(part.texts)
    ]


def _heaviest_first(pairs: list[tuple[str, float | None]]) -> list[tuple[str, float | None]]:
    return sorted(pairs, key=lambda pair: -(pair[1] or 0.0))
