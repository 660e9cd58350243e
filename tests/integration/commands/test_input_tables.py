"""`diptych prepare` and `diptych predict` on files like those of users: each row is read, or skipped and counted."""

import csv
import json
import os
import re
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import retrieval.tables.lines
from loadtest.plan import request_bodies
from retrieval.errors import BadInput, TableError
from retrieval.offline.query_files import Queries
from retrieval.open import open_store
from retrieval.tables.columns import Text
from retrieval.tables.table import Table
from tests.support.bundles import make_bundle
from tests.support.command import run
from tests.support.shapes import GOOD, QUERIES, REFUSED, ROWS, Write, folder_of, packed, text
from training.data import SPLITS, Dataset

KEEP_ALL = ("--test", "0", "--validation", "0")
# What rows are written and skipped, by reason, of a file with some rows that no command can use: prepare, predict.
ROW_CASES: dict[str, tuple[Write, int, dict[str, int], list[str], dict[str, int]]] = {
    "blank lines": (
        text("t.csv", "query,label\n\na,x\n\n   \n,\nb,y\n\n"), 7, {"blank_line": 5}, ["a", "b"], {"blank_line": 5},
    ),
    "too few and too many fields": (
        text("t.csv", "query,label\na,x\nb\nc,y,z\nd,w\n"), 4, {"bad_row": 2}, ["a", "d"], {"bad_row": 2},
    ),
    "a quote that closes lines below": (
        text("t.csv", 'query,label\na,x\n"b,x\nc,x\nd,x\ne",x\nf,x\n'), 6, {"bad_row": 1},
        ["a", "c", "d", 'e"', "f"], {"bad_row": 1},
    ),
    "a quote that closes in another row's cell": (
        text("t.csv", 'query,label\n"b,x\nc,x\nd,"x"\ne,x\n'), 4, {"bad_row": 1}, ["c", "d", "e"], {"bad_row": 1},
    ),
    "a quote that never closes": (
        text("t.csv", 'query,label\na,x\n"b,x\n' + "".join(f"q{n},x\n" for n in range(1500))), 1502, {"bad_row": 1},
        ["a", *(f"q{n}" for n in range(1500))], {"bad_row": 1},
    ),
    "a TSV cell that starts with a quote": (
        text("t.tsv", 'query\tlabel\n"a\tx\nb\tx\nc"\tx\n'), 3, {}, ['"a', "b", 'c"'], {},
    ),
    "TSV cells with quotes at the start and inside": (
        text("t.tsv", 'query\tlabel\na\tx\n"b\tx\nc\tx\nred 19" monitor\tx\n'), 4, {},
        ["a", '"b', "c", 'red 19" monitor'], {},
    ),
    "bytes that are not UTF-8": (
        packed("t.csv", b"query,label\na,x\ncaf\xe9,x\nb,x\n"), 3, {"bad_row": 1}, ["a", "b"], {"bad_row": 1},
    ),
    "lines that are no JSON objects": (
        text("t.jsonl", '{"query": "a", "label": "x"}\n{\n[1]\n7\n\n{"query": "b", "label": "y"}\n'), 6,
        {"bad_row": 3, "blank_line": 1}, ["a", "b"], {"bad_row": 3, "blank_line": 1},
    ),
    "queries that are no text": (
        text("t.jsonl", "".join(json.dumps({"query": one, "label": "x"}) + "\n" for one in ["a", 7, [], {}, True])), 5,
        {"bad_row": 4}, ["a"], {"bad_row": 4},
    ),
    "queries without a visible character": (
        text("t.jsonl", "".join(json.dumps({"query": one, "label": "x"}) + "\n" for one in
             ["a", "", " ", "\u200b", "\ufeff", "\x1b", "\u0301", "\u3164", "\u2800", None])), 10,
        {"bad_row": 9}, ["a"], {"blank_query": 9},
    ),
    "repeated pairs": (
        text("t.csv", "query,label\na,x\na,x\nA ,x\nb,x\n"), 4, {"repeated_pair": 2}, ["a", "a", "A ", "b"], {},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "words")


def answered(path: Path) -> list[str]:
    """Return the queries of a file of matches with one hit per query, in order."""
    return list(pq.read_table(path).sort_by("row").column("query").to_pylist())


def prepared_pairs(dataset: Dataset) -> set[tuple[str, str]]:
    """Return all (query, label text) pairs of a dataset."""
    texts = dataset.label_texts
    splits = [dataset.split(name) for name in SPLITS]
    return {
        (text, texts[label])
        for split in splits
        for text, labels in zip(split.texts, split.labels, strict=True)
        for label in labels
    }


def test_a_path_need_not_be_utf8(bundle: Path, tmp_path: Path) -> None:
    """If it fails, files in a folder whose name is not UTF-8 are reported as damaged, or end in a traceback."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with (folder / "t.parquet").open("wb") as file:
        pq.write_table(pa.table({"query": ["red", "city"], "label": ["a", "b"]}), file)
    assert run("prepare", folder / "t.parquet", "--out", folder / "dataset", *KEEP_ALL) == 0
    assert prepared_pairs(Dataset.open(folder / "dataset")) == {("red", "a"), ("city", "b")}
    for name in ("found.parquet", "found.csv", "found.jsonl"):
        assert (
            run("predict", "--bundle", bundle, "--input", folder / "t.parquet", "--output", folder / name, "-k", "1")
            == 0
        )
    with (folder / "found.parquet").open("rb") as file:
        assert pq.read_table(file).num_rows == 2
    assert len((folder / "found.jsonl").read_text().splitlines()) == 2
    assert run("train", "--dataset", folder / "dataset", "--out", folder / "run") == 1
    with (
        pytest.raises(BadInput, match="the path of a store or a run must be valid UTF-8"),
        open_store(folder).incoming(),
    ):
        pass


@pytest.mark.parametrize("shape", GOOD)
def test_prepare_reads_every_row_of_every_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str) -> None:
    """If this failed, a valid file would be refused or lose rows."""
    out = tmp_path / "out"
    assert run("prepare", GOOD[shape](tmp_path), "--out", out, *KEEP_ALL) == 0, capsys.readouterr().err
    assert prepared_pairs(Dataset.open(out)) == set(ROWS)
    assert "6 rows read = 6 written\n" in capsys.readouterr().out


@pytest.mark.parametrize("shape", GOOD)
def test_predict_answers_every_row_of_every_shape(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    """If this failed, predict would read less than prepare, or answer fewer queries than the file has."""
    asked = ("predict", "--bundle", bundle, "--input", GOOD[shape](tmp_path), "--output", tmp_path / "m.parquet")
    assert run(*asked, "-k", "1") == 0, capsys.readouterr().err
    assert answered(tmp_path / "m.parquet") == QUERIES
    assert "6 rows read = 6 answered\n" in capsys.readouterr().out


@pytest.mark.parametrize("shape", GOOD)
def test_loadtest_and_diff_ask_every_row_of_every_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    """If this failed, a file that predict reads would be refused, or read in part, by `loadtest` and `bundles diff`."""
    source = GOOD[shape](tmp_path)
    assert [json.loads(body)["queries"] for body in request_bodies(source, None, 1)] == [[query] for query in QUERIES]
    assert "6 rows read = 6 sent\n" in capsys.readouterr().err
    assert Queries(source, None).first(4) == (QUERIES[:4], None)


@pytest.mark.parametrize("shape", REFUSED)
def test_both_commands_refuse_a_table_with_one_sentence(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    """If this failed, a file that cannot be read would end in a traceback, in no rows, or in rows of garbage."""
    write, sentence = REFUSED[shape]
    source = write(tmp_path)
    for command in (
        ("prepare", source, "--out", tmp_path / "out"),
        ("predict", "--bundle", bundle, "--input", source, "--output", tmp_path / "m.csv"),
    ):
        assert run(*command) == 1
        said = capsys.readouterr().err
        error = said[said.index("error: ") :]
        assert sentence in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize("case", ROW_CASES)
def test_prepare_counts_what_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """If this failed, a row would be lost without a count, or good rows would be lost with a bad one."""
    write, read, skipped, _, _ = ROW_CASES[case]
    out = tmp_path / "out"
    assert run("prepare", write(tmp_path), "--out", out, *KEEP_ALL, "--skip-bad-rows") == 0, capsys.readouterr().err
    account = Dataset.open(out).meta.accounts["rows"]
    assert (account.read, account.skipped) == (read, skipped)
    assert len(prepared_pairs(Dataset.open(out))) == account.written == read - sum(skipped.values())
    listed = out / "skipped-rows.txt"
    assert (len(listed.read_text().splitlines()) if listed.exists() else 0) == skipped.get("bad_row", 0)
    total = f"{read:,} rows read = {account.written:,} written"
    assert total + (f" + {sum(skipped.values()):,} skipped" if skipped else "") + "\n" in capsys.readouterr().out


@pytest.mark.parametrize("case", ROW_CASES)
def test_predict_counts_what_it_skips(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """If this failed, a query would have no answer and no message."""
    write, read, _, queries, skipped = ROW_CASES[case]
    source, target = write(tmp_path), tmp_path / "m.parquet"
    asked = ("predict", "--bundle", bundle, "--input", source, "--output", target, "-k", "1")
    if "bad_row" in skipped:
        assert run(*asked) == 1
        assert f"{skipped['bad_row']} bad row" in capsys.readouterr().err
        assert not target.exists()
    assert run(*asked, "--skip-bad-rows") == 0
    assert answered(target) == queries
    printed = capsys.readouterr().out
    assert re.search(rf"^{read:,} rows read = {len(queries):,} answered", printed, re.MULTILINE)
    assert read == len(queries) + sum(skipped.values())


@pytest.mark.parametrize(
    ("name", "content"), [("q.csv", ""), ("q.csv", "query\n"), ("q.jsonl", ""), ("q.jsonl", "[]\n"), ("q.jsonl", "\n")]
)
def test_an_empty_list_of_queries_has_no_matches(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    """If this failed, a nightly job would fail on a night without new queries."""
    (tmp_path / name).write_text(content)
    target = tmp_path / "m.csv"
    assert run("predict", "--bundle", bundle, "--input", tmp_path / name, "--output", target) == 0
    assert pyarrow.csv.read_csv(target).num_rows == 0
    assert "0 answered" in capsys.readouterr().out


def test_a_column_that_no_row_has_is_an_error(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, predict would answer "0 matches" and exit code 0 to a wrong --column."""
    (tmp_path / "q.jsonl").write_text('{"q": "red"}\n{"q": "blue"}\n')
    asked = ("predict", "--bundle", bundle, "--input", tmp_path / "q.jsonl", "--output", tmp_path / "m.csv")
    assert run(*asked) == 1
    assert "has no column 'query'. It has: q. Choose with --column." in capsys.readouterr().err
    assert run(*asked, "--column", "q") == 0


def test_loadtest_does_not_look_at_labels(tmp_path: Path) -> None:
    """If this failed, a column that loadtest does not use would stop it."""
    source = text("t.csv", "query,labels,labels\na,x,y\n")(tmp_path)
    assert [json.loads(body)["queries"] for body in request_bodies(source, None, 1)] == [["a"]]


def test_files_of_a_folder_that_are_not_read_are_named(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this failed, a part of an unknown format would be lost without a message."""
    source = folder_of({"a.csv": b"query,label\na,x\n", "b.csv.lz4": b"x", "_SUCCESS": b""})(tmp_path)
    assert run("prepare", source, "--out", tmp_path / "out", *KEEP_ALL) == 0
    assert "1  files in the folder that were not read: b.csv.lz4" in capsys.readouterr().out
    assert run("predict", "--bundle", bundle, "--input", source, "--output", tmp_path / "m.csv") == 0
    assert "1 files in the folder that were not read: b.csv.lz4" in capsys.readouterr().out


def test_quotes_are_read_as_the_option_says(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a file with other quoting than its suffix suggests could not be read."""
    glued = 'query,label\n"a,x\nb,x\nc,x"\n'
    for content, name, options, expected in (
        (glued, "t.csv", ("--quoting", "none"), ['"a', "b", "c"]),
        ('query,label\n"a,x\nb,x\nc",x\n', "t.csv", ("--quoting", "csv"), ["a,x\nb,x\nc"]),
        ('query\tlabel\n"a ""b"""\tx\n', "t.tsv", ("--quoting", "csv"), ['a "b"']),
        ('query\tlabel\n"a"\tx\n', "t.tsv", (), ['"a"']),
        ("query^label\na^x\n", "t.csv", ("--separator", "^"), ["a"]),
        ("query\tlabel\na,b\tx\n", "t.csv", ("--separator", "tab"), ["a,b"]),
    ):
        target = tmp_path / "m.parquet"
        (tmp_path / name).write_text(content)
        assert (
            run("predict", "--bundle", bundle, "--input", tmp_path / name, "--output", target, "-k", "1", *options) == 0
        )
        assert answered(target) == expected
        target.unlink()
        out = tmp_path / "out"
        assert run("prepare", tmp_path / name, "--out", out, *KEEP_ALL, "--force", *options) == 0
        assert Dataset.open(out).split("train").texts == [" ".join(one.split()) for one in expected]
    printed = capsys.readouterr().out
    assert "1  rows that span several lines, because of quotes, such as t.csv lines 2–4" in printed
    assert "3  lines in rows that span several" in printed
    assert "1  rows with cells in quotes; the quotes are part of the text; --quoting csv removes them" in printed


def test_a_query_of_150_000_characters_is_read_by_prepare_and_predict(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this failed, a cell of more than 131,072 characters would be reported as quotes that do not match."""
    long = "red shoes!" * 15_000
    source = text("t.csv", f"query,label\n{long},x\nblue hat,y\n")(tmp_path)
    assert run("prepare", str(source), "--out", str(tmp_path / "d"), *KEEP_ALL) == 0
    assert {len(query) for query, _ in prepared_pairs(Dataset.open(tmp_path / "d"))} == {len(long), 8}
    matches = tmp_path / "m.parquet"
    assert run("predict", "--bundle", str(bundle), "--input", str(source), "--output", str(matches), "-k", "1") == 0
    assert [len(query) for query in answered(matches)] == [len(long), 8]


@pytest.mark.parametrize("separator", ["", "ab", '"', "\n"])
def test_a_separator_that_separates_nothing_is_refused(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], separator: str
) -> None:
    """If this failed, a wrong --separator would end in a traceback."""
    source = text("t.csv", "query,label\na,x\n")(tmp_path)
    for command in (
        ("prepare", source, "--out", tmp_path / "out"),
        ("predict", "--bundle", bundle, "--input", source, "--output", tmp_path / "m.csv"),
    ):
        assert run(*command, "--separator", separator) == 1
        assert ". Give one character other than a quote, or tab." in capsys.readouterr().err


def test_formulas_are_guarded_by_option(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a query such as =HYPERLINK(…) would run in a spreadsheet that opens the matches."""
    queries = ["=1+1", "+1", "-1", "@a", "＝1", "red = blue"]
    source, target = tmp_path / "q.jsonl", tmp_path / "m.csv"
    source.write_text("".join(json.dumps({"query": one}) + "\n" for one in queries))
    asked = ("predict", "--bundle", bundle, "--input", source, "-k", "1", "--output")
    assert run(*asked, target, "--guard-formulas") == 0
    assert pyarrow.csv.read_csv(target)["query"].to_pylist() == [*("'" + one for one in queries[:5]), queries[5]]
    target.unlink()
    assert run(*asked, target) == 0
    assert pyarrow.csv.read_csv(target)["query"].to_pylist() == queries
    assert run(*asked, tmp_path / "m.parquet", "--guard-formulas") == 1
    assert "--guard-formulas is for CSV" in capsys.readouterr().err


def test_true_labels_may_begin_in_a_later_line(tmp_path: Path) -> None:
    """If this failed, `bundles diff` would ignore the true labels because the first query has none."""
    lines = [{"query": "a"}, {"query": "b", "labels": ["x", "y"]}, {"query": "c", "labels": None}]
    source = text("t.jsonl", "".join(json.dumps(line) + "\n" for line in lines))(tmp_path)
    assert Queries(source, None).first(5) == (["a", "b", "c"], [[], ["x", "y"], []])
    assert Queries(source, None).first(1) == (["a"], None)


def test_a_line_that_is_too_long_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the error would name the wrong line."""
    limit = csv.field_size_limit()
    monkeypatch.setattr(retrieval.tables.lines, "MAX_LINE", 100)
    rows = 'a,x\n"b,x\nc,x\nd,x"\n"e\nf",x\n'  # a stray quote, then a row of two lines
    source = text("t.csv", "query,label\n" + rows + "g" * 101 + "\n")(tmp_path)
    try:
        with pytest.raises(TableError, match=r"t\.csv line 8 is longer than"):
            list(Table(source).batches({"query": Text()}))
    finally:
        csv.field_size_limit(limit)


def test_predict_reads_partitions_behind_a_url(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this failed, queries would have to be copied from an object store and joined by hand."""
    for name in ("date=2026-09-01/a.csv", "date=2026-09-02/b.csv"):
        with fsspec.open(f"memory://predict/{name}", "w") as file:
            file.write(f"query\n{name[-5]}\n")
    target = tmp_path / "m.parquet"
    asked = ("predict", "--bundle", bundle, "--input", "memory://predict", "--output", target, "-k", "1")
    assert run(*asked) == 0
    assert answered(target) == ["a", "b"]
    printed = capsys.readouterr().out
    assert "2 rows read = 2 answered" in printed
    assert "2 files whose path gives the column date" in printed
    assert run(*asked[:4], "memory://predict/c.csv", *asked[5:]) == 1
    assert "error: memory://predict/c.csv does not exist. Check the path.\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ORCID", "PAR1", "ARROW1", "BZh9"])
def test_a_header_may_begin_as_other_files_do(tmp_path: Path, name: str) -> None:
    """If this failed, a column's name would make a CSV file an ORC, Parquet, Arrow or bzip2 file."""
    source = text("t.csv", f"{name},query\n1,a\n")(tmp_path)
    (batch,) = Table(source).batches({"query": Text()})
    assert batch.rows["query"].to_pylist() == ["a"]
