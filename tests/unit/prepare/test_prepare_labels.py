"""The table of `--labels`: labels are matched by text or id, and all labels and attributes are in the dataset."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError
from training.data import Dataset
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings


def prepared(folder: Path, clicks: str, labels: Path, **choices: Any) -> Dataset:
    """Prepare clicks with a label table, without test and validation rows."""
    folder.mkdir(exist_ok=True)
    source = folder / "clicks.csv"
    source.write_text(clicks)
    settings = PrepareSettings(**{"test": 0.0, "validation": 0.0, **choices})
    return prepare(source, folder / "out", settings, labels=labels)[0]


def write(path: Path, content: str) -> Path:
    """Write a file and return its path."""
    path.write_text(content)
    return path


def table(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the rows of the label table."""
    return list(dataset.label_table.to_pylist())


def test_labels_are_matched_by_text_and_new_ones_have_no_attributes(tmp_path: Path) -> None:
    """If this failed, markets would be attached to the wrong labels, or labels without clicks lost."""
    labels = write(tmp_path / "labels.csv", "text,market\nshoes,uk\nboots,\nhats,fr\n")
    dataset = prepared(tmp_path, "query,label\nfootwear,boots\nfootwear,sandals\n", labels)
    assert table(dataset) == [
        {"id": "shoes", "text": "shoes", "market": "uk"},
        {"id": "boots", "text": "boots", "market": None},
        {"id": "hats", "text": "hats", "market": "fr"},
        {"id": "sandals", "text": "sandals", "market": None},
    ]
    assert list(dataset.split("train").labels[0]) == [1, 3]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_labels_are_matched_by_id(tmp_path: Path, form: str) -> None:
    """If this failed, a click log with product numbers would train on the numbers instead of the products' texts."""
    labels = tmp_path / f"labels.{form}"
    columns = {"id": ["7", "8"], "text": ["shoes", "boots"], "brand": ["x", "y"]}
    if form == "parquet":
        pq.write_table(pa.table({**columns, "id": [7, 8]}), labels)
    elif form == "jsonl":
        labels.write_text(
            "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))
        )
    else:
        delimiter = "," if form == "csv" else "\t"
        labels.write_text(
            "\n".join(delimiter.join(cells) for cells in [tuple(columns), *zip(*columns.values(), strict=True)])
        )
    dataset = prepared(tmp_path, "query,label\nfootwear,8\n", labels)
    assert table(dataset) == [
        {"id": "7", "text": "shoes", "brand": "x"},
        {"id": "8", "text": "boots", "brand": "y"},
    ]
    assert list(dataset.split("train").labels[0]) == [1]


def test_another_column_can_be_the_key(tmp_path: Path) -> None:
    """If this failed, a table with another key column could not be read."""
    labels = write(tmp_path / "labels.csv", "sku,text,price\nS1,shoes,9\nS2,boots,8\n")
    dataset = prepared(tmp_path, "query,label\nfootwear,S2\n", labels, label_key="sku")
    assert table(dataset)[1] == {"id": "S2", "text": "boots", "price": "8"}


def test_another_column_can_be_the_text(tmp_path: Path) -> None:
    """If this failed, product numbers would be learned as texts, or another text column could not be used."""
    labels = write(tmp_path / "labels.csv", "sku,title,price\nS1,shoes,9\nS2,boots,8\n")
    clicks = "query,label\nfootwear,S2\n"
    dataset = prepared(tmp_path, clicks, labels, label_key="sku", label_text="title")
    assert table(dataset)[1] == {"id": "S2", "text": "boots", "price": "8"}
    assert not [said for said in dataset.meta.notes if "--label-text" in said]
    by_text = prepared(tmp_path / "by text", "query,label\nfootwear,boots\n", labels, label_text="title")
    assert table(by_text)[1] == {"id": "boots", "text": "boots", "sku": "S2", "price": "8"}
    by_number = prepared(tmp_path / "by number", clicks, labels, label_key="sku")
    assert table(by_number)[1]["text"] == "S2"
    assert by_number.meta.notes["labels_with_key_as_text"] == {"sku": 2}
    with pytest.raises(
        DatasetError, match=r"has no column 'name'\. .* Name the column of the labels' text with --label-text"
    ):
        prepared(tmp_path / "absent", clicks, labels, label_key="sku", label_text="name")


def test_a_table_with_ids_can_be_matched_by_text(tmp_path: Path) -> None:
    """If this failed, the fix in the error for an unknown id, --label-key text, would not work."""
    labels = write(tmp_path / "labels.csv", "id,text\n7,shoes\n8,boots\n")
    dataset = prepared(tmp_path, "query,label\nfootwear,boots\n", labels, label_key="text")
    assert [row["id"] for row in table(dataset)] == ["7", "8"]
    assert list(dataset.split("train").labels[0]) == [1]


def test_typed_attributes_keep_their_types(tmp_path: Path) -> None:
    """If this failed, numbers and dates would change, or NaN would make answers invalid JSON."""
    labels = tmp_path / "labels.parquet"
    columns = {"price": [1.5, float("nan")], "tags": [["a"], []], "since": pa.array([1, 2], pa.date32())}
    pq.write_table(pa.table({"text": ["shoes", "boots"], **columns}), labels)
    dataset = prepared(tmp_path, "query,label\nfootwear,boots\n", labels)
    assert table(dataset) == [
        {"id": "shoes", "text": "shoes", "price": 1.5, "tags": ["a"], "since": "1970-01-02"},
        {"id": "boots", "text": "boots", "price": None, "tags": [], "since": "1970-01-03"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "l.csv",
            "id,text\n7,shoes\n7,boots\n",
            'l.csv line 3: id "7" is in an earlier row too. Remove one of them.',
        ),
        ("l.csv", "id,text\n7,shoes\n8,\n", "l.csv line 3: text is null, not text."),
        ("l.csv", "id,text\n7,shoes\n", 'clicks.csv line 2: label "8" is not in column id of l.csv. Add it there'),
        (
            "l.csv",
            "name,market\nshoes,uk\n",
            "has no column 'text'. It has: name, market. Name the column of the labels' text",
        ),
        ("l.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": "x"}', "column 'n' contains values of different types"),
        ("l.jsonl", '{"text": "a"}\n{"text": "b", "": 1}', "l.jsonl has a key that is empty. Give it a name"),
        ("l.txt", "shoes\n", "l.txt has none of the endings .jsonl, .ndjson, .csv, .tsv, .parquet"),
    ],
)
def test_a_bad_label_table_is_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    """If this failed, a wrong label table would give wrong attributes or a traceback."""
    with pytest.raises(DatasetError) as caught:
        prepared(tmp_path, "query,label\nfootwear,8\n", write(tmp_path / name, content))
    assert sentence in str(caught.value)


def test_a_missing_label_table_is_named(tmp_path: Path) -> None:
    """If this failed, a mistyped --labels would end in a traceback."""
    with pytest.raises(DatasetError, match=r"nowhere\.csv does not exist\. Check the path\."):
        prepared(tmp_path, "query,label\na,b\n", tmp_path / "nowhere.csv")
