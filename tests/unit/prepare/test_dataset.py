"""The prepared dataset: it is read as it was written, and invalid tables are neither written nor read."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError
from training.data import Dataset, DatasetMeta, Ragged, Split
from training.prepare.writing import write_dataset

LABELS = pa.table({"id": ["a", "b", "c"], "text": ["apple", "bread", "cheese"], "market": ["uk", None, "fr"]})
META = DatasetMeta(name="food")


def split_table(**columns: Any) -> Any:
    """Return a table of two valid rows, with some columns replaced."""
    good = {"id": ["1", "2"], "text": ["fruit", "loaf"], "labels": [[0, 2], [1]], "exclude": [[2], []]}
    chosen = {**good, **columns}
    return pa.table({name: values for name, values in chosen.items() if values is not None})


def written(folder: Path) -> Dataset:
    """Write a small dataset to `folder`."""
    return write_dataset(folder, LABELS, {"train": split_table(), "test": split_table(labels=[[1], [2]])}, META)


def test_written_data_are_read_back(tmp_path: Path) -> None:
    """If this failed, training and export would see other texts, labels or attributes than were prepared."""
    dataset = written(tmp_path / "food")
    train = dataset.split("train")
    assert (train.ids, train.texts) == (["1", "2"], ["fruit", "loaf"])
    assert dataset.label_texts == ["apple", "bread", "cheese"]
    assert dataset.label_table["market"].to_pylist() == ["uk", None, "fr"]
    assert len(dataset.split("validation")) == 0
    assert dataset.meta.splits["train"].positives == 2


def test_excluded_labels_are_out_of_the_truth(tmp_path: Path) -> None:
    """If this failed, an excluded label would be a positive in training and a true label in evaluation."""
    train = written(tmp_path / "food").split("train")
    assert [list(row) for row in train.labels] == [[0], [1]]
    assert [list(row) for row in train.exclude] == [[2], []]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"id": ["1", "1"]}, "train.parquet row 1: id '1' is the id of row 0 too. Give each row its own id."),
        ({"id": ["1", None]}, "train.parquet row 1: id is null. Remove the row or add the value."),
        ({"text": ["fruit", " "]}, "train.parquet row 1: text is empty. Remove the row or add text."),
        ({"text": ["fruit", None]}, "train.parquet row 1: text is null. Remove the row or add the value."),
        ({"text": None}, "train.parquet needs one column text; it has id, labels, exclude."),
        ({"text": [True, False]}, "train.parquet: column text is bool, not text. Store it as strings."),
        (
            {"labels": [[0], [3]]},
            "train.parquet row 1: labels contains label row 3, but labels.parquet has rows 0 to 2. "
            "Remove the number or add the label.",
        ),
        ({"labels": [[-1], [1]]}, "train.parquet row 0: labels contains label row -1, but"),
        ({"labels": [[0], [1, 1]]}, "train.parquet row 1: labels contains label row 1 twice. Remove one."),
        ({"labels": [[0], None]}, "train.parquet row 1: labels is null. Remove the row or add the value."),
        ({"labels": [[0], [None]]}, "train.parquet row 1: labels contains a null. Remove it."),
        ({"labels": ["0", "1"]}, "train.parquet: column labels is string, not lists of row numbers."),
        ({"labels": [[2], [1]]}, "train.parquet row 0: labels is empty after the excluded labels are removed."),
        (
            {"exclude": [[0], [9]]},
            "train.parquet row 1: exclude contains label row 9, but labels.parquet has rows 0 to 2.",
        ),
    ],
)
def test_a_foreign_file_with_a_bad_row_is_refused_where_it_is_bad(
    tmp_path: Path, columns: dict[str, Any], sentence: str
) -> None:
    """If this failed, a broken dataset written by another program would train on wrong labels or end in a traceback."""
    folder = written(tmp_path / "food").folder
    pq.write_table(split_table(**columns), folder / "train.parquet")
    with pytest.raises(DatasetError) as caught:
        Dataset.open(folder).split("train")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"id": ["a", "a"], "text": ["x", "y"]}, "labels.parquet row 1: id 'a' is the id of row 0 too."),
        ({"id": ["a", "b"], "text": ["x", ""]}, "labels.parquet row 1: text is empty. Remove the row or add text."),
        ({"id": ["a"]}, "labels.parquet needs one column text; it has id."),
        ({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, "labels.parquet has no rows."),
    ],
)
def test_a_bad_label_table_is_refused(tmp_path: Path, labels: dict[str, Any], sentence: str) -> None:
    """If this failed, two labels could have the same id, or a label without text would be served."""
    with pytest.raises(DatasetError, match=sentence.replace(".", r"\.")):
        write_dataset(tmp_path / "food", pa.table(labels), {}, META)


def test_a_refused_write_leaves_what_was_there(tmp_path: Path) -> None:
    """If this failed, a failed run would destroy the dataset of an earlier one."""
    dataset = written(tmp_path / "food")
    with pytest.raises(DatasetError, match="labels contains label row 7"):
        write_dataset(dataset.folder, LABELS, {"train": split_table(labels=[[7], [0]])}, META, replace=True)
    assert Dataset.open(dataset.folder).fingerprint == dataset.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["food"]


def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    """If this failed, a full disk would replace a dataset by an incomplete one."""
    dataset = written(tmp_path / "food")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # the kernel refuses longer files, as a full disk does
    try:
        with pytest.raises(DatasetError, match=r"cannot be written: File too large\. It is unchanged\."):
            write_dataset(dataset.folder, LABELS, {"train": split_table()}, META, replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Dataset.open(dataset.folder).fingerprint == dataset.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["food"]


@pytest.mark.parametrize(
    ("name", "replace", "sentence"),
    [
        ("food", False, "contains another dataset. Choose another folder, or add --force to replace it."),
        ("notes", True, "exists and is not a prepared dataset, so it is not replaced."),
        ("notes/mine.txt", True, "is a file. Choose a folder"),
    ],
)
def test_nothing_of_the_users_is_overwritten(tmp_path: Path, name: str, replace: bool, sentence: str) -> None:
    """If this failed, a mistyped --out would destroy a folder."""
    written(tmp_path / "food")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(DatasetError, match=sentence.replace(".", r"\.")):
        write_dataset(tmp_path / name, LABELS, {"train": split_table()}, META, replace=replace)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_a_dataset_with_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    """If this failed, --force would delete the user's other files in the folder."""
    folder = written(tmp_path / "food").folder
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(DatasetError, match=r"also contains 'notes\.txt', which would be deleted"):
        write_dataset(folder, LABELS, {"train": split_table()}, META, replace=True)


def test_the_fingerprint_depends_on_content_and_not_on_the_parquet_writer(tmp_path: Path) -> None:
    """If this failed, a resumed run would be refused on the same data, or continue with other data."""
    dataset = written(tmp_path / "food")
    path = dataset.folder / "train.parquet"
    pq.write_table(pq.read_table(path), path, compression="gzip", row_group_size=1)
    assert Dataset.open(dataset.folder).fingerprint == dataset.fingerprint
    pq.write_table(split_table(text=["fruits", "loaf"]), path)
    with pytest.raises(DatasetError, match=r"differs from its dataset\.json"):
        _ = Dataset.open(dataset.folder).fingerprint


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("dataset.json", None, "is not a prepared dataset: it has no dataset.json"),
        (
            "dataset.json",
            b'{"name": "x", "format_version": 3}',
            "dataset.json: format_version is 3, not 1 or 2. Prepare the dataset again.",
        ),
        ("dataset.json", b"{", "Invalid JSON"),
        ("test.parquet", None, "has no test.parquet. Prepare the dataset again with `diptych prepare`."),
        ("test.parquet", b"no parquet", "cannot be read as Parquet"),
    ],
)
def test_a_damaged_folder_says_what_is_missing(tmp_path: Path, file: str, content: bytes | None, sentence: str) -> None:
    """If this failed, an incomplete copy of a dataset would end in a traceback."""
    folder = written(tmp_path / "food").folder
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(DatasetError, match=sentence.replace(".", r"\.")):
        Dataset.open(folder).split("test")


def test_an_unknown_split_is_named_with_the_known_ones(tmp_path: Path) -> None:
    """If this failed, `--split tset` would end in a KeyError."""
    with pytest.raises(DatasetError, match=r"'tset' is not a split\. Choose one of train, validation, test"):
        written(tmp_path / "food").split("tset")


def test_only_queries_with_a_true_label_are_scored(tmp_path: Path) -> None:
    """If this failed, queries without a true label would be evaluated, or a split without any would give NaN."""
    tables = {"train": split_table(), "test": split_table(labels=[[2], [1]])}  # the first excludes its only label
    dataset = write_dataset(tmp_path / "food", LABELS, tables, META)
    assert dataset.scored("test").ids == ["2"]
    with pytest.raises(DatasetError, match=r"food: the split 'validation' has no query with a true label"):
        dataset.scored("validation")


def test_a_split_can_be_split_up_and_built_from_lists() -> None:
    """If this failed, a checkpoint's validation queries would lose or swap their labels."""
    labels, exclude = Ragged.from_lists([[0], [], [1, 2]]), Ragged.from_lists([[], [4], []])
    split = Split.from_lists(["x", "y", "z"], ["1", "2", "3"], labels, exclude).take(np.array([2, 1]))
    assert (split.ids, split.texts) == (["z", "y"], ["3", "2"])
    assert [list(row) for row in split.labels] == [[1, 2], []]
    assert [list(row) for row in split.exclude] == [[], [4]]


def test_a_split_followed_by_another_holds_both() -> None:
    """If this failed, label queries would be trained with the labels of other queries."""
    splits = [
        Split.from_lists(ids, texts, Ragged.from_lists(labels), Ragged.from_lists(exclude))
        for ids, texts, labels, exclude in (
            (["a", "b"], ["tea", "fish"], [[0, 2], [1]], [[], [2]]),
            (["c"], ["milk"], [[2]], [[0, 1]]),
            ([], [], [], []),
        )
    ]
    first, second, nothing = splits
    joined = first.take(np.array([1, 0])).followed_by(second)
    assert (joined.ids, joined.texts) == (["b", "a", "c"], ["fish", "tea", "milk"])
    assert [row.tolist() for row in joined.labels] == [[1], [0, 2], [2]]
    assert [row.tolist() for row in joined.exclude] == [[2], [], [0, 1]]
    for alone in (second.followed_by(nothing), nothing.followed_by(second)):
        assert alone.table().equals(second.table())


def test_two_ragged_lists_are_joined_row_by_row_or_one_behind_the_other() -> None:
    """If this failed, queries would get the labels or excluded labels of others."""
    rows, more = [[3, 1], [], [7]], [[2], [5, 5], []]
    left, right = Ragged.from_lists(rows), Ragged.from_lists(more)
    joined, behind = left.concat_values(right), left.followed_by(right)
    assert [joined[row].tolist() for row in range(3)] == [a + b for a, b in zip(rows, more, strict=True)]
    assert [behind[row].tolist() for row in range(6)] == rows + more
