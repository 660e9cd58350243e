"""dataset.html, and the statistics that it shows, of datasets with known content."""

from collections.abc import Iterator
from datetime import date
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.training.checkpoints import write_words
from training.data.dataset import Dataset, DatasetMeta
from training.data.meta import DayCounts, LabelRename, Period
from training.data.statistics import dataset_statistics, missing_days
from training.pages.dataset_page import DatasetTexts, Setting, dataset_page, random_rows, write_dataset_page
from training.prepare.writing import write_dataset

SCRIPT = "<script>alert(1)</script>"
HOSTILE = [SCRIPT, "\"><img src=http://example.org/x onerror='alert(1)'>", "a\u202eb\u2066c\x1b[31m", "x" * 100_000]
DAYS = {
    "2026-09-01": DayCounts(rows=30, clicks=12.5, positives=4),
    "2026-09-04": DayCounts(rows=9, clicks=3, positives=2),
}
META = DatasetMeta(
    name=SCRIPT, source=SCRIPT, notes={"unused_columns": {SCRIPT: 3}}, skipped=1, skipped_first=(SCRIPT,), days=DAYS,
    period=Period(first_day="2026-09-01", last_day="2026-09-04", validation_from="2026-09-03", test_from="2026-09-04"),
    renames=7, renames_first=(LabelRename(id=SCRIPT, before=SCRIPT, now="shoes"),), detected={"separator": SCRIPT},
)  # fmt: skip
TEXTS = DatasetTexts((SCRIPT,), ((3, SCRIPT),), (Setting("--test", "0.2", "0.1", SCRIPT),))


def table(texts: list[str], labels: list[list[int]], weights: list[list[float]] | None) -> pa.Table:
    columns = {
        "id": [f"q{row}" for row in range(len(texts))],
        "text": texts,
        "labels": pa.array(labels, pa.list_(pa.int32())),
    }
    if weights is not None:
        days = [[date(2026, 9, 1)] * len(row) for row in labels]
        columns["weights"] = pa.array(weights, pa.list_(pa.float32()))
        columns |= {name: pa.array(days, pa.list_(pa.date32())) for name in ("first_day", "last_day")}
    return pa.table(columns)


def log(folder: Path, *, weighted: bool = True, meta: DatasetMeta = META) -> Dataset:
    """Write four labels, three training queries, and three test queries of which two are known."""
    labels = pa.table({"id": list("abcd"), "text": HOSTILE, "market": ["US"] * 4})
    weights = [[8.0, 2.0], [1.0], [5.0]] if weighted else None
    train = table(["Red shoes", "blue", HOSTILE[2]], [[0, 1], [0], [2]], weights)
    weights = [[6.0, 1.0], [2.0], [1.0]] if weighted else None
    test = table(["RED  shoes", "green", "ｂｌｕｅ"], [[0, 3], [1], [3]], weights)
    numbers = {"row": pa.array([1, 1, 1], pa.int32()), "label": pa.array([2, 2, 3], pa.int32())}
    texts = {"split": ["test", "train", "train"], "query": ["green", "blue", "blue"]}
    exposures = pa.table({**texts, **numbers, "impressions": [5, 20, 30]})
    return write_dataset(folder, labels, {"train": train, "test": test}, meta, exposures=exposures)


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {' '.join(data.split())} "

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return log(tmp_path_factory.mktemp("log") / "dataset")


@pytest.fixture(scope="module")
def html(dataset: Dataset) -> str:
    return dataset_page(dataset, dataset_statistics(dataset), TEXTS)


def test_shares_of_known_test_pairs_are_by_identity_and_by_weight(dataset: Dataset) -> None:
    """If this failed, a case variant of a training query would count as new, or all pairs would weigh the same."""
    known = dataset_statistics(dataset).known
    assert known is not None
    assert (known.queries.pairs, known.queries.weight) == (0.75, 0.8)
    assert (known.labels.pairs, known.labels.weight) == (0.5, 0.8)
    assert (known.both.pairs, known.both.weight) == (0.25, 0.6)


def test_statistics_count_each_split(dataset: Dataset) -> None:
    """If this failed, the summary and the page would show wrong sizes, days, lengths or frequencies."""
    statistics = dataset_statistics(dataset)
    train, test = statistics.splits["train"], statistics.splits["test"]
    assert (train.counts.rows, train.counts.positives, train.weight) == (3, 4, 16.0)
    assert (train.first_day, train.last_day) == ("2026-09-01", "2026-09-01")
    assert (statistics.splits["validation"].weight, statistics.splits["validation"].first_day) == (None, None)
    assert (test.counts.positives, statistics.weight) == (4, 26.0)
    assert statistics.label_positives_L.tolist() == [2, 1, 1, 0]
    assert [(group.name, group.labels, group.positives) for group in statistics.label_groups()[:3]] == [
        ("0", 1, 0),
        ("1", 2, 2),
        ("2 to 5", 1, 2),
    ]
    assert statistics.queries_by_words.tolist() == [4, 2, *[0] * 8]
    assert statistics.characters == (5, 10, 10)
    assert list(statistics.exposures.items()) == [("train", (2, 50)), ("test", (1, 5))]


def test_a_dataset_without_clicks_has_no_weights(tmp_path: Path) -> None:
    """If this failed, the page of a plain dataset would show weights or days that it does not have."""
    dataset = log(tmp_path / "plain", weighted=False, meta=DatasetMeta(name="plain"))
    statistics = dataset_statistics(dataset)
    assert (statistics.weighted, statistics.dated) == (False, False)
    assert statistics.known
    assert (statistics.known.queries.weight, statistics.known.queries.headline) == (None, 0.75)
    text = Page(dataset_page(dataset, statistics, DatasetTexts())).text
    assert "by weight" not in text
    assert "first day" not in text
    assert "Clicks per day" not in text


def test_the_page_loads_nothing_and_runs_nothing(html: str) -> None:
    """If this failed, opening the page would need a network, or run HTML from a log."""
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    attributes = {name for _, of in page.elements for name in of}
    assert not {"src", "srcset", "action", "data", "xlink:href"} & attributes
    assert not [name for name in attributes if name.startswith("on")]
    assert not [of["href"] for _, of in page.elements if "href" in of and not str(of["href"]).startswith("#")]
    assert "url(" not in html
    assert "@import" not in html
    policies = [of["content"] for of in page.all("meta") if of.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_texts_are_shown_as_text(html: str) -> None:
    """If this failed, a query or label could change the page, reverse its lines, or make it unreadably long."""
    text = Page(html).text
    assert SCRIPT in text
    assert "onerror='alert(1)'>" in text
    assert not set("\u202e\u2066\x1b") & set(html)
    assert "x" * 159 + "…" in text
    assert "x" * 160 not in text


def test_the_page_shows_the_content_of_the_dataset(html: str, dataset: Dataset) -> None:
    """If this failed, the page would omit what a user checks after preparing a log."""
    page = Page(html)
    for heading in ("Splits", "Rows", "Exposures", "Notes", "Bad rows", "Days", "Labels", "Renamed labels", "Queries",
                    "Random rows", "Source and settings"):  # fmt: skip
        assert f" {heading} " in page.text, heading
    assert " 7 labels have several texts" in page.text
    assert "2026-09-01 to 2026-09-04" in page.text
    assert "Separator" in page.text
    assert " 80.0 % " in page.text
    assert dataset.meta.fingerprint in page.text
    names = [str(of["aria-label"]) for of in page.all("svg") if "aria-label" in of]
    assert "Clicks per day by day; 2026-09-01: 12; 2026-09-02: 0; 2026-09-03: 0; 2026-09-04: 3" in names
    assert "Training positives by rank of the label" in names
    assert [name for name in names if name.startswith("Queries by words; 1: 4; 2: 2; ")]


def test_the_page_can_be_read_with_a_screen_reader(html: str) -> None:
    """If this failed, a chart would have no text alternative, a heading level would be skipped, or an id repeated."""
    page = Page(html)
    assert next(page.all("html"))["lang"] == "en"
    for of in page.all("svg"):
        assert of.get("aria-hidden") == "true" or (of.get("role") == "img" and of.get("aria-label"))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [of["id"] for _, of in page.elements if "id" in of]
    assert len(ids) == len(set(ids))


def test_the_same_dataset_gives_the_same_page(dataset: Dataset, html: str, tmp_path: Path) -> None:
    """If this failed, a prepared dataset could not be reproduced byte by byte."""
    path = write_dataset_page(dataset, dataset_statistics(dataset), TEXTS)
    assert path.read_bytes() == html.encode()
    again = log(tmp_path / "again")
    assert dataset_page(again, dataset_statistics(again), TEXTS) == html
    assert Dataset.open(dataset.folder).fingerprint == again.fingerprint


def test_a_dataset_with_a_page_can_be_replaced(tmp_path: Path) -> None:
    """If this failed, --force would refuse to replace a dataset because of its own page."""
    dataset = log(tmp_path / "dataset")
    page = write_dataset_page(dataset, dataset_statistics(dataset), TEXTS)
    labels = pa.table({"id": ["a"], "text": ["shoes"]})
    write_dataset(dataset.folder, labels, {"train": table(["red"], [[0]], None)}, DatasetMeta(name="new"), replace=True)
    assert not page.exists()


def test_twenty_random_rows_come_from_all_splits(tmp_path: Path) -> None:
    """If this failed, a large training split would hide the rows of the others, or labels would be of another row."""
    dataset = write_words(tmp_path / "words")
    rows = random_rows(dataset)
    assert [row.split for row in rows] == ["train"] * 10 + ["validation"] * 5 + ["test"] * 5
    assert len({row.text for row in rows}) > 15
    split = dataset.split("test")
    for row in rows[15:]:
        place = split.texts.index(row.text)
        assert [text for text, _ in row.labels] == [dataset.label_texts[label] for label in split.labels[place]]
        assert row.excluded == 2
    assert rows == random_rows(dataset)


def test_labels_of_a_random_row_are_ordered_by_weight(dataset: Dataset) -> None:
    """If this failed, the most clicked label of a query could be among those that are not shown."""
    by_text = {row.text: [weight for _, weight in row.labels] for row in random_rows(dataset)}
    assert by_text["RED  shoes"] == [6.0, 1.0]


@pytest.mark.parametrize(
    ("last", "title", "columns"),
    [
        ("2026-09-30", "Clicks per day", 30),
        ("2030-01-01", "Clicks per month", 41),
        ("9999-12-31", "Clicks per year", 2),
    ],
)
def test_charts_of_long_logs_have_longer_units(tmp_path: Path, last: str, title: str, columns: int) -> None:
    """If this failed, one wrong date in a log would make a page with millions of columns."""
    days = {day: DayCounts(rows=1, clicks=2, positives=1) for day in ("2026-09-01", last)}
    dataset = log(tmp_path / "dataset", meta=DatasetMeta(name="log", days=days))
    page = dataset_page(dataset, dataset_statistics(dataset), TEXTS)
    assert f"<figcaption>{title}</figcaption>" in page
    assert page.count(f'id="{title.lower().replace(" ", "-")}-column-') == columns


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ([], (0, [])),
        (["2026-09-01"], (0, [])),
        (["2026-09-03", "2026-09-01", "2026-09-06"], (3, ["2026-09-02", "2026-09-04"])),
        (["0001-01-01", "9999-12-31"], (3652057, ["0001-01-02", "0001-01-03"])),
    ],
)
def test_days_without_rows_are_counted(days: list[str], expected: tuple[int, list[str]]) -> None:
    """If this failed, a file that is missing from a log would not be noticed."""
    assert missing_days(days, 2) == expected
