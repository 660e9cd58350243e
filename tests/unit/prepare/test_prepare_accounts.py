"""`diptych prepare` on mixed rows, ids, counts, spellings and attributes: no row or label is lost or mixed up."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError, InternalError
from retrieval.query_text import split_key
from retrieval.tables.account import RowAccount
from tests.support.command import run
from training.data import SPLITS, Dataset
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings

LABELS = '{"id": 7, "text": "shoes"}\n{"id": 8, "text": "boots"}\n'


def written(path: Path, content: str) -> Path:
    """Write a file and return its path."""
    path.write_text(content, encoding="utf-8")
    return path


def lines(*records: dict[str, Any]) -> str:
    """Return records as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def prepared(source: Path, labels: Path | None = None, **choices: Any) -> Dataset:
    """Prepare a source, by default without test and validation rows."""
    settings = PrepareSettings(**{"test": 0.0, "validation": 0.0, **choices})
    return prepare(source, source.parent / "out", settings, labels=labels)[0]


def rows(dataset: Dataset) -> dict[str, list[str]]:
    """Return label texts by query text, of all splits."""
    return {
        text: [dataset.label_texts[label] for label in labels]
        for split in (dataset.split(name) for name in SPLITS)
        for text, labels in zip(split.texts, split.labels, strict=True)
    }


@pytest.mark.parametrize("label", [8, "8", 8.0])
def test_a_single_label_among_lists_is_a_list_of_one(tmp_path: Path, label: Any) -> None:
    """If this failed, all later rows with one label instead of a list would be silently lost."""
    records = [{"query": f"many {n}", "labels": [7, 8]} for n in range(20)]
    records += [{"query": f"one {n}", "label": label} for n in range(20)]
    labels = written(tmp_path / "labels.jsonl", LABELS)
    dataset = prepared(written(tmp_path / "s.jsonl", lines(*records)), labels)
    assert len(rows(dataset)) == 40
    assert rows(dataset)["one 3"] == ["boots"]
    assert dataset.meta.accounts["rows"] == RowAccount(read=40, written=40)


@pytest.mark.parametrize("value", [["boots"], [], None, {"a": 1}, 1.5, True, 3])
def test_a_value_that_is_not_a_single_label_among_pairs_is_a_named_bad_row(tmp_path: Path, value: Any) -> None:
    """If this failed, a list after a first row with one label would be lost, or another value read as a label."""
    source = written(tmp_path / "s.jsonl", lines({"query": "a", "label": "shoes"}, {"query": "b", "label": value}))
    with pytest.raises(DatasetError, match=r"s\.jsonl line 2: label is "):
        prepared(source)
    account = prepared(source, skip_bad_rows=True).meta.accounts["rows"]
    assert account == RowAccount(read=2, written=1, skipped={"bad_row": 1})


def test_a_first_row_that_is_bad_does_not_decide_the_form(tmp_path: Path) -> None:
    """If this failed, one bad row at the top would make every good one bad."""
    source = written(tmp_path / "s.jsonl", lines({"query": "a", "labels": {}}, {"query": "b", "labels": ["shoes"]}))
    assert rows(prepared(source, skip_bad_rows=True)) == {"b": ["shoes"]}


def test_rows_without_a_label_are_counted_by_reason(tmp_path: Path) -> None:
    """If this failed, rows with empty lists, or whose labels were all excluded or rare, would vanish."""
    source = written(
        tmp_path / "s.jsonl",
        lines(
            {"query": "a", "labels": ["x", "y"]}, {"query": "b", "labels": ["x"]}, {"query": "c", "labels": []},
            {"query": "d", "labels": ["x"], "exclude": ["x"]}, {"query": "e", "labels": ["z"]},
        ),
    )  # fmt: skip
    account = prepared(source, min_label_count=2).meta.accounts["rows"]
    assert account == RowAccount(read=5, written=2, skipped={"no_label": 1, "no_label_left": 2})


def test_lists_written_in_cells_are_lists(tmp_path: Path) -> None:
    """If this failed, a CSV with JSON lists would train on texts such as ["a", "b"], and [] would be a label."""
    source = written(tmp_path / "s.csv", 'query;labels\na;["x", "y"]\nb;[]\nc;z\nd;[sale] shoes\n')
    dataset = prepared(source)
    assert rows(dataset) == {"a": ["x", "y"], "c": ["z"], "d": ["[sale] shoes"]}
    assert dataset.meta.accounts["rows"].skipped == {"no_label": 1}


def test_a_pair_with_count_0_is_no_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, every label that was shown but not clicked would be a positive."""
    source = written(tmp_path / "s.csv", "query,label,n\na,x,0\na,y,2\nb,x,0\nc,x,0\nc,x,1\nd,z,3.5\n")
    options = (source, "--test", "0", "--validation", "0", "--count-column", "n", "--out")
    assert run("prepare", *options, tmp_path / "one") == 1
    assert 's.csv line 7: n is "3.5", not a count' in capsys.readouterr().err
    assert run("prepare", *options, tmp_path / "one", "--skip-bad-rows") == 0
    dataset = Dataset.open(tmp_path / "one")
    assert rows(dataset) == {"a": ["y"], "c": ["x"]}
    assert dataset.meta.accounts["rows"].skipped == {"exposure": 2, "repeated_pair": 1, "bad_row": 1}
    assert "2  with a pair that was shown and not clicked, stored in exposures.parquet" in capsys.readouterr().out


def test_a_source_of_zeros_says_why_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, the message would not name the counts as the reason."""
    source = written(tmp_path / "s.csv", "query,label,n\na,x,0\nb,y,0\n")
    assert run("prepare", source, "--count-column", "n", "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "has no training row left: 2 rows read = 0 written + 2 skipped; 2 with a pair that was shown and not" in said


def test_spellings_of_a_query_are_one_query_on_one_side(tmp_path: Path) -> None:
    """If this failed, a test query could be in training: the encoder reads both spellings alike."""
    spellings = [
        "Red Shoes {}",
        "red shoes {}",
        "RED  SHOES {}",
        "réd shoes {}",
        "ｒｅｄ shoes {}",
        "red\u200b shoes {}",
    ]
    pairs = [(spelling.format(n), f"kind {n % 5}") for n in range(60) for spelling in spellings]
    source = written(tmp_path / "s.jsonl", lines(*({"query": query, "label": label} for query, label in pairs)))
    dataset = prepared(source, test=0.3, validation=0.2)
    keys = [{split_key(text) for text in dataset.split(name).texts} for name in SPLITS]
    assert all(keys)
    assert not keys[0] & keys[2]
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]
    assert sum(len(dataset.split(name)) for name in SPLITS) == 120  # the accented spelling has a row of its own
    notes = dataset.meta.notes
    assert notes["merged_spellings"] == 240
    assert notes["queries_read_alike"] == 60
    assert dataset.meta.accounts["rows"] == RowAccount(read=360, written=120, skipped={"repeated_pair": 240})


@pytest.mark.parametrize(
    ("ids", "clicked", "expected"),
    [
        (pa.array([7, 8], pa.int64()), "8", "boots"),
        (pa.array([7, 2**64 - 1], pa.uint64()), str(2**64 - 1), "boots"),
        (pa.array([7.0, 8.0], pa.float64()), "8", "boots"),
        (pa.array(["7", "8"]).cast(pa.decimal128(38, 2)), "8", "boots"),
        (pa.array(["7", "9" * 37]).cast(pa.decimal128(38, 0)), "9" * 37, "boots"),
        (pa.array(["7", "007"]), "007", "boots"),
        (pa.array(["7", "007"]), "7", "shoes"),
        (pa.array([b"7", b"8"]), "8", "boots"),
        (pa.array(["7", "8"]).dictionary_encode(), "8", "boots"),
    ],
)
def test_ids_are_whole_numbers_or_texts(tmp_path: Path, ids: Any, clicked: str, expected: str) -> None:
    """If this failed, a table whose ids have another type could not be used, or two ids would be one label."""
    labels = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"id": ids, "text": ["shoes", "boots"]}), labels)
    dataset = prepared(written(tmp_path / "s.csv", f"query,label\na,{clicked}\n"), labels)
    assert rows(dataset) == {"a": [expected]}


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ('{"id": true, "text": "x"}', "labels.jsonl line 1: id is true, not text."),
        ('{"id": 1.5, "text": "x"}', "id is 1.5, which is not an exact integer."),
        ('{"id": 1e300, "text": "x"}', "id is 1e+300, which is not an exact integer."),
        ('{"id": NaN, "text": "x"}', "id is NaN, not text."),
        ('{"id": null, "text": "x"}', "id is null, not text."),
        ('{"id": [1], "text": "x"}', "id is [1], not text."),
        ('{"id": 7, "text": "x"}\n{"id": "7", "text": "y"}', 'labels.jsonl line 2: id "7" is in an earlier'),
        ('{"id": 7, "text": "x"}\n{"id": 7.0, "text": "y"}', 'id "7" is in an earlier row too.'),
        ('{"id": "8", "text": "x"}', 'label "008" is not in column id of labels.jsonl. It has "8": write both'),
        ('{"id": "008.0", "text": "x"}', 'label "008" is not in column id of labels.jsonl. Add it there'),
    ],
)  # fmt: skip
def test_ids_that_are_ambiguous_are_named(tmp_path: Path, records: str, sentence: str) -> None:
    """If this failed, a boolean or a fraction would be an id, or two rows would silently be one."""
    labels = written(tmp_path / "labels.jsonl", records)
    with pytest.raises(DatasetError) as caught:
        prepared(written(tmp_path / "s.csv", "query,label\na,008\n"), labels)
    assert sentence in str(caught.value)


def test_attributes_of_every_type_become_values_that_json_has(tmp_path: Path) -> None:
    """If this failed, one attribute would stop the command, or answers would be invalid JSON."""
    nan = float("nan")
    columns: dict[str, tuple[Any, Any]] = {
        "ns": (pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")), "2023-11-14 22:13:20.123456789"),
        "far": (pa.array([4_000_000], pa.int32()).cast(pa.date32()), "12921-08-18"),
        "time": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
        "span": (pa.array([5], pa.duration("ns")), "5"),
        "big": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        "exact": (pa.array(["1.50"]).cast(pa.decimal128(10, 2)), "1.50"),
        "void": (pa.nulls(1), None),
        "view": (pa.array(["v"], pa.string_view()), "v"),
        "kind": (pa.array(["d"]).dictionary_encode(), "d"),
        "half": (pa.array([1.5], pa.float16()), 1.5),
        "score": (pa.array([nan]), None),
        "scores": (pa.array([[1.0, nan, None]]), [1.0, None, None]),
        "nested": (pa.array([{"a": [nan], "b": "x"}]), {"a": [None], "b": "x"}),
        "days": (pa.array([[1]], pa.list_(pa.int32())).cast(pa.list_(pa.date32())), ["1970-01-02"]),
        "long": (pa.array(["x" * 150_000]), "x" * 150_000),
    }
    labels = tmp_path / "labels.parquet"
    pq.write_table(
        pa.table({"id": ["7"], "text": ["shoes"], **{n: value for n, (value, _) in columns.items()}}), labels
    )
    dataset = prepared(written(tmp_path / "s.csv", "query,label\na,7\n"), labels)
    (record,) = dataset.label_table.to_pylist()
    assert {name: record[name] for name in columns} == {name: expected for name, (_, expected) in columns.items()}
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([b"\xff"]), "column 'a' contains bytes"),
        (
            pa.array([2**40], pa.timestamp("s")).cast(pa.timestamp("s")),
            "column 'a' of type timestamp",
        ),
        (
            pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()),
            "column 'a' of type large_string cannot",
        ),
    ],
)
def test_an_attribute_that_no_answer_can_carry_is_named(tmp_path: Path, column: Any, sentence: str) -> None:
    """If this failed, such an attribute would end in a traceback here or break export later."""
    labels = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"id": ["7"], "text": ["shoes"], "a": column}), labels)
    with pytest.raises(DatasetError) as caught:
        prepared(written(tmp_path / "s.csv", "query,label\na,7\n"), labels)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("l.jsonl", '{"id": 7, "text": "x", "n": 1180591620717411303424}', "l.jsonl line 1: n is 11805916207"),
        ("l.jsonl", '{"id": 7, "text": "x", "n": ' + "9" * 5_000 + "}", "l.jsonl line 1: n is"),
        ("l.jsonl", '{"id": 7, "text": "x", "n": [18446744073709551616]}', "l.jsonl line 1: n is 184467440"),
        ("l.csv", b"id,text,n\n7,x,\xe9\n", "l.csv line 2: n contains the byte 0xe9, which is not UTF-8. It may"),
    ],
)  # fmt: skip
def test_an_attribute_that_no_type_holds_is_a_named_bad_row(
    tmp_path: Path, name: str, content: str | bytes, sentence: str
) -> None:
    """If this failed, one cell would end the command with a traceback."""
    labels = tmp_path / name
    labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match="has 1 bad row") as caught:
        prepared(written(tmp_path / "s.csv", "query,label\na,7\n"), labels)
    assert sentence in str(caught.value)


def test_bad_labels_are_named_before_the_clicks_that_need_them(tmp_path: Path) -> None:
    """If this failed, the message about one bad label would be lost among those about its clicks."""
    labels = written(tmp_path / "labels.csv", "id,text\n7,\n8,boots\n")
    with pytest.raises(DatasetError, match=r"labels\.csv has 1 bad row") as caught:
        prepared(written(tmp_path / "s.csv", "query,label\n" + "a,7\n" * 50), labels)
    assert "/s.csv" not in str(caught.value)


def test_label_rows_are_counted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, labels would be left out of a dataset without a count."""
    labels = written(tmp_path / "labels.csv", "id,text\n7,shoes\n\n8,\n9,hats\n")
    source = written(tmp_path / "s.csv", "query,label\na,7\n")
    options = ("--labels", labels, "--out", tmp_path / "out", "--test", "0", "--validation", "0")
    assert run("prepare", source, *options, "--skip-bad-rows", "--min-label-count", "1") == 0
    account = Dataset.open(tmp_path / "out").meta.accounts["labels"]
    assert account == RowAccount(read=4, written=1, skipped={"blank_line": 1, "bad_row": 1, "rare_label": 1})
    assert "label table: 4 rows read = 1 labels + 3 skipped" in capsys.readouterr().out


def test_a_folder_of_label_parts_is_one_table(tmp_path: Path) -> None:
    """If this failed, a label table written by Spark could not be read."""
    (tmp_path / "labels").mkdir()
    for number, (row, text) in enumerate([(7, "shoes"), (8, "boots")]):
        part = pa.table({"id": [row], "text": [text], "n": pa.array([number], pa.int32() if number else pa.int64())})
        pq.write_table(part, tmp_path / "labels" / f"part-{number}.parquet")
    dataset = prepared(written(tmp_path / "s.csv", "query,label\na,8\n"), tmp_path / "labels")
    assert dataset.label_table.to_pylist() == [
        {"id": "7", "text": "shoes", "n": 0}, {"id": "8", "text": "boots", "n": 1},
    ]  # fmt: skip


def test_labels_in_the_folder_of_the_source_are_no_part_of_it(tmp_path: Path) -> None:
    """If this failed, the label table would be read as clicks."""
    (tmp_path / "data").mkdir()
    labels = written(tmp_path / "data" / "labels.csv", "id,text\n7,shoes\n")
    written(tmp_path / "data" / "clicks.csv", "query,label\na,7\n")
    settings = PrepareSettings(test=0, validation=0)
    assert rows(prepare(tmp_path / "data", tmp_path / "out", settings, labels=labels)[0]) == {"a": ["shoes"]}


def test_an_account_that_does_not_add_up_is_an_internal_error() -> None:
    """If this failed, a row lost by a bug would not be noticed."""
    assert RowAccount(read=3, written=1, skipped={"bad_row": 2}).check("x")
    with pytest.raises(InternalError, match="x: 4 rows were read, but 1 written and 2 skipped"):
        RowAccount(read=4, written=1, skipped={"bad_row": 2}).check("x")


def test_a_number_of_many_digits_is_shown_as_it_was_written(tmp_path: Path) -> None:
    """If this failed, the error would show a Python type instead of the number as it is in the file."""
    digits = "9" * 5_000
    with pytest.raises(DatasetError, match=r"line 1: label is 9{10,}…, not text"):
        prepared(written(tmp_path / "s.jsonl", f'{{"query": "a", "label": {digits}}}\n'))
