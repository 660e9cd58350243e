"""Format version 2 of a dataset: click weights, days, exposures; version 1 stays readable."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError
from training.data import Dataset, DatasetMeta, Ragged, Split
from training.data.meta import DayCounts, Period
from training.prepare.writing import write_dataset

DAYS = pa.list_(pa.date32())
NUMBERS = pa.list_(pa.int32())
LABELS = pa.table(
    {
        "id": ["a", "b", "c"],
        "text": ["apple", "bread", "cheese"],
        "market": ["uk", None, "fr"],
        "first_seen": pa.array(["2026-09-01", None, "2026-09-03"]).cast(pa.date32()),
    }
)
TRAIN = pa.table(
    {
        "id": ["1", "2"],
        "text": ["fruit", "loaf"],
        "labels": pa.array([[0, 2], [1, 2]], NUMBERS),
        "exclude": pa.array([[2], []], NUMBERS),
        "weights": [[3.5, 8.0], [1.0, 0.25]],
        "first_day": pa.array([["2026-09-01", "2026-09-02"], ["2026-09-03", "2026-09-04"]]).cast(DAYS),
        "last_day": pa.array([["2026-09-05", "2026-09-06"], ["2026-09-07", "2026-09-08"]]).cast(DAYS),
    }
)
EXPOSURES = pa.table(
    {
        "split": ["train", "test"],
        "query": ["fruit", "jam"],
        "row": pa.array([0, None], pa.int32()),
        "label": pa.array([1, 2], pa.int32()),
        "impressions": [40, 2],
    }
)
# dataset.json as the last release with version 1 wrote it
VERSION_1 = {
    "format_version": 1,
    "name": "clicks",
    "source": "clicks.csv",
    "settings": {"query_column": None, "test": 0.2, "files": {"rows": "clicks.csv 72222134ef3d"}},
    "labels": 3,
    "splits": {"train": {"rows": 2, "positives": 3, "rows_without_labels": 0}},
    "accounts": {"rows": {"read": 8, "written": 7, "skipped": {"repeated_pair": 1}}},
    "report": {"spellings of a query merged with its first one (case, spaces, invisible characters)": 1},
    "skipped": 0,
    "skipped_first": [],
    "fingerprint": "",
}


def with_columns(table: Any, **columns: Any) -> Any:
    """Return the table with some columns replaced, or left out if None."""
    chosen = {name: columns.get(name, table[name]) for name in table.column_names}
    return pa.table({name: values for name, values in chosen.items() if values is not None})


def written(folder: Path, train: Any = TRAIN, exposures: Any = EXPOSURES, labels: Any = LABELS) -> Dataset:
    """Write a dataset with one split to `folder`."""
    return write_dataset(folder, labels, {"train": train}, DatasetMeta(name="food"), exposures=exposures)


def test_weights_and_days_follow_the_labels_of_their_query(tmp_path: Path) -> None:
    """If this failed, clicks of an excluded label or of another query would become the weight of a positive."""
    train = written(tmp_path / "food").split("train")
    assert [row.tolist() for row in train.labels] == [[0], [1, 2]]
    assert {name: values_V.astype(str).tolist() for name, values_V in train.pair_values.items()} == {
        "weights": ["3.5", "1.0", "0.25"],
        "first_day": ["2026-09-01", "2026-09-03", "2026-09-04"],
        "last_day": ["2026-09-05", "2026-09-07", "2026-09-08"],
    }
    swapped = train.take(np.array([1, 0]))
    assert swapped.pair_values["weights"].dtype == np.float32
    assert swapped.pair_values["weights"].tolist() == [1.0, 0.25, 3.5]
    assert Split.from_table(swapped.table()).table().equals(swapped.table())


def test_a_split_without_weights_continues_one_with_weights(tmp_path: Path) -> None:
    """If this failed, label queries, which have no clicks, would shift the weights of training queries."""
    train = written(tmp_path / "food").split("train")
    plain = Split.from_lists(["x"], ["milk"], Ragged.from_lists([[0, 1]]), Ragged.empty(1))
    first, second = train.followed_by(plain), plain.followed_by(train)
    assert first.pair_values["weights"].tolist() == [3.5, 1.0, 0.25, 1.0, 1.0]
    assert second.pair_values["weights"].tolist() == [1.0, 1.0, 3.5, 1.0, 0.25]
    assert np.isnat(first.pair_values["first_day"]).tolist() == [False] * 3 + [True] * 2
    assert plain.followed_by(plain).weights_V is None


def test_days_of_labels_are_not_attributes(tmp_path: Path) -> None:
    """If this failed, a bundle would show and filter by the days on which a label was seen in the log."""
    dataset = written(tmp_path / "food")
    assert dataset.label_table.column_names == ["id", "text", "market"]
    assert {name: days.astype(str).tolist() for name, days in dataset.label_days.items()} == {
        "first_seen": ["2026-09-01", "NaT", "2026-09-03"]
    }
    texts = LABELS.set_column(3, "first_seen", pa.array(["spring", None, "autumn"]))
    dataset = written(tmp_path / "texts", labels=texts)
    assert (dataset.label_table.column_names[2:], dataset.label_days) == (["market", "first_seen"], {})


def test_exposures_are_read_back(tmp_path: Path) -> None:
    """If this failed, labels that were shown and not clicked would be lost or belong to other queries."""
    assert written(tmp_path / "food").exposures().to_pylist() == EXPOSURES.to_pylist()
    assert written(tmp_path / "none", exposures=None).exposures() is None


def test_the_fingerprint_covers_clicks_and_exposures_only_if_there_are_some(tmp_path: Path) -> None:
    """If this failed, a run would resume on other weights, or earlier checkpoints would not fit their dataset."""
    plain = with_columns(TRAIN, weights=None, first_day=None, last_day=None)
    labels = LABELS.drop_columns(["first_seen"])
    changed = {
        "plain": (plain, None, labels),
        "days of labels": (plain, None, LABELS),
        "all": (TRAIN, EXPOSURES, LABELS),
        "weight": (with_columns(TRAIN, weights=[[3.5, 8.0], [1.0, 0.5]]), EXPOSURES, LABELS),
        "day": (with_columns(TRAIN, first_day=TRAIN["last_day"]), EXPOSURES, LABELS),
        "label shown": (TRAIN, with_columns(EXPOSURES, label=pa.array([1, 1], pa.int32())), LABELS),
        "query shown": (TRAIN, with_columns(EXPOSURES, query=["fruit", "jar"]), LABELS),
    }
    prints = {name: written(tmp_path / name, *tables).fingerprint for name, tables in changed.items()}
    assert len(set(prints.values())) == len(changed)
    assert (
        prints["plain"] == "55c58f282d8e1086626daba79231b65edf253bc839ebbac825f06b8f63b7b8f4"
    )  # of the release before


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"weights": [[1.0], [1.0, 1.0]]}, "train.parquet row 0: weights has 1 values, but labels has 2."),
        ({"weights": [[1.0, 1.0], [0.0, 1.0]]}, "row 1: weights contains 0.0, not a number above 0."),
        ({"weights": [[1.0, float("inf")], [1.0, 1.0]]}, "row 0: weights contains inf, not a number above 0."),
        ({"weights": [[1.0, None], [1.0, 1.0]]}, "row 0: weights contains None, not a number above 0."),
        ({"weights": [["1", "2"], ["3", "4"]]}, "column weights is list<element: string>. Store it as list<float>."),
        ({"weights": [1.0, 2.0]}, "column weights is double. Store it as list<float>."),
        ({"first_day": [[1, 2], [3, 4]]}, "column first_day is list<element: int64>. Store it as list<date32[day]>."),
        (
            {"last_day": pa.array([["2026-09-05", None], ["2026-09-07", "2026-09-08"]]).cast(DAYS)},
            "row 0: last_day contains None, not a date. Write a date per label.",
        ),
    ],
)
def test_bad_weights_and_days_are_refused(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    """If this failed, a broken dataset of another program would train with wrong or infinite weights."""
    folder = written(tmp_path / "food").folder
    pq.write_table(with_columns(TRAIN, **columns), folder / "train.parquet")
    with pytest.raises(DatasetError) as caught:
        Dataset.open(folder).split("train")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"split": ["train", "tset"]}, "row 1: split is not one of train, validation, test: tset."),
        ({"row": pa.array([2, None], pa.int32())}, "exposures.parquet row 0: row is not a row of its split: 2."),
        ({"label": [1, 3]}, "row 1: label is not a row of labels.parquet (0 to 2): 3."),
        ({"label": pa.array([None, 0], pa.int32())}, "row 0: label is not a row of labels.parquet (0 to 2): None."),
        ({"impressions": [1, 0]}, "row 1: impressions is not 1 or more: 0."),
        ({"impressions": None}, "exposures.parquet needs one column impressions; it has split, query, row, label."),
        ({"label": ["a", "b"]}, "exposures.parquet: column label is string. Store it as int32."),
        ({"query": ["fruit", None]}, "exposures.parquet row 1: query is null."),
    ],
)
def test_bad_exposures_are_neither_written_nor_read(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    """If this failed, labels of another query or of no row would serve as hard negatives."""
    exposures = with_columns(EXPOSURES, **columns)
    with pytest.raises(DatasetError) as caught:
        written(tmp_path / "food", exposures=exposures)
    assert sentence in str(caught.value)
    folder = written(tmp_path / "food").folder
    pq.write_table(exposures, folder / "exposures.parquet")
    with pytest.raises(DatasetError) as caught:
        Dataset.open(folder).exposures()
    assert sentence in str(caught.value)


def test_a_dataset_of_version_1_is_read(tmp_path: Path) -> None:
    """If this failed, datasets that a released version prepared could no longer be trained on."""
    plain = with_columns(TRAIN, weights=None, first_day=None, last_day=None)
    folder = written(tmp_path / "food", plain, None).folder
    (folder / "dataset.json").write_text(json.dumps(VERSION_1))
    dataset = Dataset.open(folder)
    assert dataset.meta.notes == VERSION_1["report"]
    assert dataset.meta.accounts["rows"].skipped == {"repeated_pair": 1}
    train = dataset.split("train")
    assert (train.texts, train.weights_V, dataset.exposures()) == (["fruit", "loaf"], None, None)


def test_days_and_period_are_kept_in_dataset_json(tmp_path: Path) -> None:
    """If this failed, the age of labels would be counted from another day than the start of the test period."""
    period = Period(first_day="2026-09-01", last_day="2026-09-07", test_from="2026-09-07")
    days = {"2026-09-01": DayCounts(rows=10, clicks=3.5, positives=2)}
    meta = DatasetMeta(name="food", days=days, period=period, renames=4)
    folder = write_dataset(tmp_path / "food", LABELS, {"train": TRAIN}, meta).folder
    read = Dataset.open(folder).meta
    assert (read.days, read.period, read.renames, read.format_version) == (days, period, 4, 2)
