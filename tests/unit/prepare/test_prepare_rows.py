"""`diptych prepare` on JSON Lines, CSV, TSV and Parquet: the rows that are read, and the message for each bad row."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError
from training.data import Dataset, SplitName
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings

GOOD = b'{"query": "bike", "labels": ["bicycle", "cycling"], "split": "train"}\n'


def prepared(source: Path, **choices: Any) -> Dataset:
    """Prepare a source, by default without test and validation rows."""
    settings = PrepareSettings(**{"test": 0.0, "validation": 0.0, **choices})
    return prepare(source, source.parent / "out", settings)[0]


def rows(dataset: Dataset, name: SplitName = "train") -> dict[str, list[str]]:
    """Return label texts by query text."""
    split = dataset.split(name)
    return {
        text: [dataset.label_texts[label] for label in labels]
        for text, labels in zip(split.texts, split.labels, strict=True)
    }


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_json_lines_of_queries_keep_splits_excludes_and_ids(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    """If this failed, a test query could be trained on, or an excluded label could count as an answer."""
    lines = [
        {"query": "bike", "labels": ["bicycle", "cycling", "bike"], "split": "train", "exclude": ["bike"], "id": "q7"},
        {"query": " red \t wine", "labels": ["drink"], "split": "test"},
        {"query": "beer", "labels": ["drink"], "split": "validation", "exclude": ["nowhere"]},
    ]
    source = tmp_path / f"things.jsonl{ending}"
    source.write_bytes(pack("\n".join(map(json.dumps, lines)).encode()))
    dataset = prepared(source)
    assert rows(dataset) == {"bike": ["bicycle", "cycling"]}
    assert rows(dataset, "test") == {"red wine": ["drink"]}
    assert rows(dataset, "validation") == {"beer": ["drink"]}
    assert dataset.split("train").ids == ["q7"]
    assert [dataset.label_texts[label] for label in dataset.split("train").exclude[0]] == ["bike"]
    assert dataset.meta.name == "things"
    assert dataset.meta.notes == {
        "excluded_labels_removed": 1,
        "excluded_texts_without_label": 1,
    }


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
def test_pairs_of_one_query_become_one_row(tmp_path: Path, form: str) -> None:
    """If this failed, each click would be a query of its own with one label."""
    pairs = [("cheap flights", "flight"), ("hotel", "room"), ("cheap flights", "airline"), ("cheap flights", "flight")]
    source = tmp_path / f"clicks.{form}"
    if form == "jsonl":
        source.write_text("\n".join(json.dumps({"query": query, "label": label}) for query, label in pairs))
    elif form == "parquet":
        pq.write_table(pa.table({"query": [pair[0] for pair in pairs], "label": [pair[1] for pair in pairs]}), source)
    else:
        delimiter = "," if form == "csv" else "\t"
        source.write_text("\n".join(delimiter.join(cells) for cells in [("query", "label"), *pairs]) + "\n")
    dataset = prepared(source)
    assert rows(dataset) == {"cheap flights": ["flight", "airline"], "hotel": ["room"]}
    assert dataset.meta.accounts["rows"].skipped == {"repeated_pair": 1}


def test_rare_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    """If this failed, --min-count would not remove accidental clicks, or remove them without a count."""
    source = tmp_path / "clicks.csv"
    source.write_text('q,k,n\nbike,bicycle,2\nbike,"cars, used",1\nbike,bicycle,1\nshoe,boot,0\n')
    dataset = prepared(source, query_column="q", label_column="k", clicks_column="n", min_clicks=3)
    assert rows(dataset) == {"bike": ["bicycle"]}
    assert dataset.label_texts == ["bicycle", "boot"]  # boot was shown; the label below the limit is left out
    account = dataset.meta.accounts["rows"]
    assert account.skipped == {"exposure": 1, "repeated_pair": 1, "below_min_clicks": 1}
    assert (account.read, account.written) == (4, 1)


def test_rare_labels_are_counted_outside_the_test_split_only(tmp_path: Path) -> None:
    """If this failed, the test split would decide which labels are learned."""
    source = tmp_path / "things.jsonl"
    lines = [("a", ["x", "y"], "train"), ("b", ["x"], "train"), ("c", ["y"], "test"), ("d", ["y", "x"], "test")]
    source.write_text("\n".join(json.dumps({"query": q, "labels": ls, "split": s}) for q, ls, s in lines))
    dataset = prepared(source, min_label_count=2)
    assert dataset.label_texts == ["x"]
    assert rows(dataset, "test") == {"c": [], "d": ["x"]}
    assert dataset.meta.notes["rare_labels"] == 1
    assert dataset.meta.notes["positives_of_rare_labels"] == 3


def test_parquet_rows_with_lists_are_read(tmp_path: Path) -> None:
    """If this failed, the example could not be prepared."""
    source = tmp_path / "things.parquet"
    table = {
        "query": ["bike", "car"],
        "labels": [["a", "b", "a"], ["b"]],
        "split": ["train", "test"],
        "exclude": [[], ["a"]],
    }
    pq.write_table(pa.table(table), source)
    dataset = prepared(source)
    assert (rows(dataset), rows(dataset, "test")) == ({"bike": ["a", "b"]}, {"car": ["b"]})


def test_excludes_and_ids_are_read_with_any_name_of_the_label_column(tmp_path: Path) -> None:
    """If this failed, excluded labels would count as answers where the lists have another name."""
    source = tmp_path / "things.parquet"
    table = {"query": ["bike"], "kw": [["a", "b"]], "exclude": [["b"]], "id": [70], "split": ["train"]}
    pq.write_table(pa.table(table), source)
    dataset = prepared(source, label_column="kw")
    assert rows(dataset) == {"bike": ["a"]}
    assert dataset.split("train").ids == ["70"]
    assert dataset.meta.notes == {"excluded_labels_removed": 1}


def test_a_split_column_of_clicks_is_used(tmp_path: Path) -> None:
    """If this failed, clicks marked as test would be trained on."""
    source = tmp_path / "clicks.csv"
    source.write_text("query,label,part\nbike,a,train\nbike,b,test\ncar,b,dev\nbike,c,train\n")
    dataset = prepared(source, split_column="part")
    assert rows(dataset) == {"bike": ["a", "c"]}
    assert rows(dataset, "test") == {"bike": ["b"]}
    assert rows(dataset, "validation") == {"car": ["b"]}
    assert dataset.meta.notes["test_queries_in_training"] == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", '"{" is not JSON (Expecting property name enclosed in double quotes, column 2). Write one'),
        (b"[1]", "[1] is not a JSON object. Write one object per line"),
        (b'{"query": "caf\xe9"}', "query contains the byte 0xe9, which is not UTF-8. It may be Latin-1: convert"),
        (b'{"labels": ["a"]}', "'query' is missing; the row has 'labels'. Add it."),
        (b'{"query": "a"}', "labels is null or missing. Write a list of labels"),
        (b'{"query": 7, "labels": ["a"]}', "query is 7, not text. Write text or remove the row."),
        (b'{"query": " ", "labels": ["a"]}', 'query is " ", which is empty. Write text or remove the row.'),
        (b'{"query": "a", "labels": null}', "labels is null"),
        (b'{"query": "a", "labels": ["b", 3]}', "labels[1] is 3, not text. Write text or remove the row."),
        (b'{"query": "a", "labels": ["b", ""]}', 'labels[1] is "", which is empty.'),
        (b'{"query": "a", "labels": ["b"], "exclude": "c"}', 'exclude is "c", not a list of labels. Write a list'),
        (b'{"query": "a", "labels": ["b"], "split": "tset"}', 'split is "tset". Write train, validation or test.'),
        (b'{"query": "a", "labels": ["b"]}', "the row has no split, but the first row has a split. Give all"),
        (b'{"query": "a", "labels": ["b"], "split": "test", "id": "1"}', 'id "1" is the id of an earlier row too.'),
        (b'{"query": "a", "labels": ["b"], "split": "test", "id": []}', "id is [], not text."),
        (b'{"query": "\\ud83d", "labels": ["b"]}', "query contains half a surrogate pair, \\ud83d"),
        (b'{"query": "' + b"a" * 101 + b'", "labels": ["b"]}', 'query has 101 characters ("aaaa'),
        (b'{"n": ' + b"9" * 5_000 + b', "query" }', '"{\\"n\\": 9999999'),
        (b'{"query": "a", "query": "b", "labels": ["b"]}', 'the key "query" occurs twice. Remove one.'),
        (b'{"query": ' + b"[" * 100_000 + b"}", "the JSON is nested too deeply."),
    ],
)  # fmt: skip
def test_each_bad_line_is_named_with_its_value_and_the_way_out(tmp_path: Path, line: bytes, sentence: str) -> None:
    """If this failed, the error would not name the line or its problem."""
    source = tmp_path / "things.jsonl"
    source.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(DatasetError) as caught:
        prepared(source, max_characters=100)
    message = str(caught.value)
    assert f"{source} has 1 bad row; nothing was written." in message
    assert f"things.jsonl line 2: {sentence}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"query,label\na,b\nc\n", 'line 3: the row has 1 fields (["c"]), the header has 2. Correct the row.'),
        (b"query,label\na,b\n,c\n", "line 3: query is null, not text. Write text or remove the row."),
        (b"query,label\na,b\nc,\n", "line 3: label is null, not text. Write text or remove the row."),
        (b"query,label\na,caf\xe9\nc,d\n", "line 2: label contains the byte 0xe9, which is not UTF-8."),
        (b'query,label\na,"b" c\nc,d\n', "line 2: the quotes do not match"),
        (b'query,label\nc,d\na,"b\nx,y\n', "line 3: the quotes do not match"),
    ],
)
def test_each_bad_cell_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    """If this failed, a stray quote or a missing cell would silently shift or lose clicks."""
    source = tmp_path / "clicks.csv"
    source.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        prepared(source)
    assert f"clicks.csv {sentence}" in str(caught.value)


@pytest.mark.parametrize("value", ["-1", "1.5", "many", ""])
def test_a_count_that_is_no_count_is_named(tmp_path: Path, value: str) -> None:
    """If this failed, a wrong --count-column would give clicks wrong weights."""
    source = tmp_path / "clicks.csv"
    source.write_text(f"query,label,n\na,b,2\nc,d,{value}\n")
    with pytest.raises(DatasetError, match=r"clicks\.csv line 3: n is .*, not a count\. Write an integer"):
        prepared(source, clicks_column="n")


def test_counts_may_be_written_as_pandas_writes_them(tmp_path: Path) -> None:
    """If this failed, a CSV from pandas with nulls in its count column would be refused."""
    source = tmp_path / "clicks.csv"
    source.write_text("query,label,n\na,b,2.0\nc,d,10\ne,f,0.0\n")
    kept = prepared(source, clicks_column="n", test=0, validation=0)
    assert sorted(kept.split("train").texts) == ["a", "c"]


def test_parquet_rows_are_named_by_number(tmp_path: Path) -> None:
    """If this failed, the error would not name the row of a null in Parquet."""
    source = tmp_path / "clicks.parquet"
    pq.write_table(pa.table({"query": ["a", None], "label": ["b", "c"]}), source)
    with pytest.raises(DatasetError, match=r"clicks\.parquet row 1: query is null, not text"):
        prepared(source)


def test_all_bad_rows_are_counted_and_twenty_are_listed(tmp_path: Path) -> None:
    """If this failed, a user would see one bad row per run, or thousands at once."""
    source = tmp_path / "things.jsonl"
    source.write_bytes(GOOD + b"{}\n" * 1500)
    with pytest.raises(DatasetError) as caught:
        prepared(source)
    first, *listed = str(caught.value).splitlines()
    assert "has 1,500 bad rows; nothing was written." in first
    assert "--skip-bad-rows" in first
    assert len(listed) == 20
    assert "things.jsonl line 2: 'query' is missing" in listed[0]


def test_skipped_rows_are_counted_and_every_one_is_listed(tmp_path: Path) -> None:
    """If this failed, --skip-bad-rows would drop data silently."""
    source = tmp_path / "things.jsonl"
    source.write_bytes(b"{}\n" * 30 + GOOD)
    dataset = prepared(source, skip_bad_rows=True)
    assert rows(dataset) == {"bike": ["bicycle", "cycling"]}
    assert dataset.meta.skipped == 30
    assert len(dataset.meta.skipped_first) == 20
    listed = (dataset.folder / "skipped-rows.txt").read_text().splitlines()
    assert len(listed) == 30
    assert listed[29].startswith("things.jsonl line 30: 'query' is missing")


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    """If this failed, files saved by a spreadsheet would have no column `query`."""
    for name, content in {"a.csv": "query,label\nbike,x\n", "b.jsonl": '{"query": "bike", "label": "x"}'}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        dataset = prepare(tmp_path / name, tmp_path / f"out-{name}", PrepareSettings(test=0, validation=0))[0]
        assert rows(dataset) == {"bike": ["x"]}


def test_a_column_that_is_not_used_is_reported(tmp_path: Path) -> None:
    """If this failed, a misspelt column (spilt, excluded) would be silently ignored."""
    source = tmp_path / "things.jsonl"
    source.write_text('{"query": "a", "labels": ["b"], "excluded": ["c"]}\n')
    assert prepared(source).meta.notes == {"unused_columns": {"excluded": 1}}
    source = tmp_path / "more" / "things.jsonl"
    source.parent.mkdir()
    source.write_text('{"query": "a", "labels": ["b"], "": 1}\n{"query": "c", "labels": ["b"], "": 1, "n": 2}\n')
    assert prepared(source).meta.notes == {"unused_columns": {"": 2, "n": 1}}


@pytest.mark.parametrize(
    ("name", "content", "choices", "sentence"),
    [
        ("x.csv", None, {}, "does not exist. Check the path."),
        ("x.csv", b"", {}, "is empty. Give a file with rows."),
        ("x.csv", b"query,label\n", {}, "has a header but no rows."),
        ("x.csv", b"search,term\na,b\n", {}, "has no column 'query'. It has: search, term. Name one with --query"),
        ("x.csv", b"query,term\na,b\n", {}, "has no column 'label'. It has: query, term. Name one with --label-c"),
        ("x.csv", b"query,label\na,b\n", {"split_column": "s"}, "has no column 's'. It has: query, label."),
        ("x.csv", b"query,query\na,b\n", {}, "has two columns 'query' in its header. Rename one."),
        ("x.csv", b"query,label\na,b\n", {"text": "title+content"}, "--text is for LF-* folders, and"),
        ("x.csv", b"query,label\na,b\n", {"label_key": "id"}, "--label-key names a column of the label table."),
        ("x.csv", b"query,label\na,b\n", {"min_clicks": 2}, "has no training row left: 1 row read = 0 written + 1"),
        ("x.jsonl", GOOD, {"min_clicks": 2}, "--min-clicks is for rows with one (query, label) pair, but this"),
        ("x.jsonl", b"\n\n", {}, "has only blank lines."),
        ("x.jsonl.gz", gzip.compress(GOOD * 99)[:-9], {}, "is truncated or not a gzip file"),
        ("x.jsonl.xz", lzma.compress(GOOD * 99)[:-9], {}, "is truncated or not a xz file"),
        ("x.parquet", GOOD, {}, "cannot be read as Parquet"),
        ("x.xlsx", GOOD, {}, "has none of the endings .jsonl, .ndjson, .csv, .tsv, .parquet, .json (also with .gz,"),
    ],
)  # fmt: skip
def test_a_file_that_will_not_do_gets_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, choices: dict[str, Any], sentence: str
) -> None:
    """If this failed, a wrong file or option would end in a traceback or in an empty dataset."""
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        prepared(source, **choices)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
