"""`diptych prepare` on click logs: weights, exposures, time splits, texts of labels, incremental reading."""

import gzip
import json
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError
from training.data import SPLITS, Dataset
from training.prepare.clicks import reader
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings, merged_settings
from training.prepare.source_yaml import read_source_yaml

FIRST = date(2026, 9, 1)


def written(path: Path, content: str) -> Path:
    """Write a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def prepared(source: Path, **choices: Any) -> Dataset:
    """Prepare a source, by default without test and validation rows."""
    settings = PrepareSettings(**{"test": 0.0, "validation": 0.0, **choices})
    return prepare(source, source.parent / f"out-{source.stem}", settings, force=True)[0]


def weights(dataset: Dataset, name: str = "train") -> dict[tuple[str, str], float]:
    """Return the weight of each (query, label text) pair of a split."""
    split = dataset.split(name)
    weight_V = np.ones(len(split.labels.values)) if split.weights_V is None else split.weights_V
    queries = np.array(split.texts, object)[split.labels.row_of_value]
    labels = np.array(dataset.label_texts, object)[split.labels.values]
    return {(str(q), str(x)): float(w) for q, x, w in zip(queries, labels, weight_V, strict=True)}


def exposures(dataset: Dataset) -> set[tuple[str, str, str, int]]:
    """Return split, query, label text and impressions of each exposure."""
    table = dataset.exposures()
    rows = [] if table is None else table.to_pylist()
    return {(row["split"], row["query"], dataset.label_texts[row["label"]], row["impressions"]) for row in rows}


def test_clicks_are_weights_and_pairs_without_clicks_are_exposures(tmp_path: Path) -> None:
    """Counts (1, 100000) and (100000, 1) would give the same dataset, or labels nobody clicked would be positives."""
    source = written(
        tmp_path / "log.csv",
        "query,label,impressions,clicks\nred shoes,a,10,1\nred shoes,b,20,100000\nred shoes,c,30,0\nhat,d,4,0\n"
        "Red  Shoes,b,5,2\nred shoes,c,1,0\n",
    )
    dataset = prepared(source)
    assert weights(dataset) == {("red shoes", "a"): 1, ("red shoes", "b"): 100002}
    assert exposures(dataset) == {("train", "red shoes", "c", 31), ("train", "hat", "d", 4)}
    account = dataset.meta.accounts["rows"]
    assert (account.read, account.written, account.skipped) == (6, 2, {"repeated_pair": 2, "exposure": 2})
    rows = dataset.exposures().to_pylist()
    assert [(row["query"], row["row"]) for row in rows] == [("red shoes", 0), ("hat", None)]
    assert dataset.label_texts == ["a", "b", "c", "d"]


def test_equal_weights_are_not_stored(tmp_path: Path) -> None:
    """A source without counts would give another dataset, and another model, than before."""
    dataset = prepared(written(tmp_path / "log.csv", "query,label\na,x\na,y\nb,x\n"))
    assert dataset.split("train").weights_V is None
    assert dataset.split("train").first_day_V is None


def test_the_most_frequent_spelling_is_shown(tmp_path: Path) -> None:
    """A rare misspelling that comes first would be the text of the query."""
    rows = "RED shoes,a,1\nRed Shoes,a,7\nｒｅｄ shoes,b,2\nred\u200b shoes,b,2\ncafé,a,1\nCAFÉ,b,1\n"
    dataset = prepared(written(tmp_path / "log.csv", f"query,label,clicks\n{rows}"))
    assert weights(dataset) == {
        ("Red Shoes", "a"): 8, ("Red Shoes", "b"): 4, ("café", "a"): 1, ("café", "b"): 1,
    }  # fmt: skip
    assert dataset.meta.notes["merged_spellings"] == 4


def test_clicks_decay_with_their_age(tmp_path: Path) -> None:
    """A label that was popular last month would count as much as one that is popular today."""
    source = written(
        tmp_path / "log.csv",
        "query,label,clicks,date\na,old,8,2026-09-01\na,new,8,2026-09-15\na,old,1,2026-09-15\na,mid,8,20260908\n",
    )
    assert weights(prepared(source, half_life_days=7)) == {("a", "old"): 3, ("a", "new"): 8, ("a", "mid"): 4}
    split = prepared(source).split("train")
    assert split.first_day_V is not None
    assert split.last_day_V is not None
    assert [str(day) for day in split.first_day_V] == ["2026-09-01", "2026-09-15", "2026-09-08"]
    assert [str(day) for day in split.last_day_V] == ["2026-09-15", "2026-09-15", "2026-09-08"]


def test_one_source_has_at_most_its_share_of_the_clicks_of_a_query(tmp_path: Path) -> None:
    """One bot could decide which label is the best of a query."""
    users = "".join(f"a,x,1,user{n}\n" for n in range(12)) + "".join(f"a,y,1,user{n}\n" for n in range(12, 16))
    rows = f"query,label,clicks,user\n{users}a,spam,100000,bot\nb,z,7,bot\nc,z,3,user1\nc,w,9,user2\n"
    source = written(tmp_path / "log.csv", rows)
    limited = weights(prepared(source, source_column="user"))
    assert limited["a", "spam"] == pytest.approx(4)  # 0.2 of 20
    assert (limited["a", "x"], limited["a", "y"]) == (12, 4)
    assert limited["b", "z"] == 7  # the only source of a query cannot have less than all
    assert limited["c", "w"] == pytest.approx(3)  # two sources: half each
    assert weights(prepared(source, source_column="user", max_share=0.5))["a", "spam"] == pytest.approx(16)
    with pytest.raises(DatasetError, match="--max-share needs a column with the sources of clicks, such as users"):
        prepared(source, max_share=0.5)


def test_min_clicks_and_min_ctr_define_a_positive(tmp_path: Path) -> None:
    """An accidental click, or 1 click in 10,000 impressions, would be a positive."""
    source = written(
        tmp_path / "log.csv",
        "query,label,impressions,clicks\na,good,100,30\na,bad,10000,1\na,new,1,1\na,rare,1,0\nb,once,50,1\n",
    )
    dataset = prepared(source, min_ctr=0.002)
    assert weights(dataset).keys() == {("a", "good"), ("a", "new"), ("b", "once")}
    assert dataset.meta.accounts["rows"].skipped == {"exposure": 1, "below_min_ctr": 1}
    dataset = prepared(source, min_clicks=2)
    assert weights(dataset).keys() == {("a", "good")}
    assert dataset.meta.accounts["rows"].skipped == {"exposure": 1, "below_min_clicks": 3}
    assert exposures(dataset) == {("train", "a", "rare", 1)}


def test_clicks_are_weighted_by_position(tmp_path: Path) -> None:
    """Labels that were always shown at the top would be learned as the best ones."""
    rows = "query,label,position,impressions,clicks\na,x,1,1000,200\na,x,2,1000,100\na,y,1,1000,80\na,y,2,1000,40\n"
    source = written(tmp_path / "log.csv", rows)
    dataset = prepared(source)
    assert dataset.meta.examination == pytest.approx((1, 0.5), abs=0.01)
    assert weights(dataset) == pytest.approx({("a", "x"): 400, ("a", "y"): 160}, rel=0.02)
    table = written(tmp_path / "examination.csv", "position,probability\n1,0.8\n2,0.2\n")
    assert weights(prepared(source, examination=str(table)))["a", "x"] == pytest.approx(600)
    assert weights(prepared(source, position_column="none"))["a", "x"] == 300
    wrong = written(tmp_path / "wrong.csv", "position,probability\n1,1.5\n")
    with pytest.raises(DatasetError, match=r"probability of position 1 is 1\.5"):
        prepared(source, examination=str(wrong))


def test_positions_that_tell_nothing_are_an_error_only_when_asked_for(tmp_path: Path) -> None:
    """A log with a column called position could not be prepared, or --position-column would silently do nothing."""
    source = written(tmp_path / "log.csv", "query,label,position,clicks\na,x,1,3\nb,y,2,1\n")
    dataset = prepared(source)
    assert weights(dataset) == {("a", "x"): 3, ("b", "y"): 1}
    assert dataset.meta.notes["positions_not_used"] == 1
    with pytest.raises(DatasetError, match="No pair was shown at several positions, so examination cannot be"):
        prepared(source, position_column="position")


def test_positions_count_from_1(tmp_path: Path) -> None:
    """Clicks at position 0 would have no weight, or a huge position would end in a traceback."""
    table = written(tmp_path / "examination.csv", "position,probability\n1,0.8\n2,0.2\n")
    source = written(tmp_path / "log.csv", "query,label,position,clicks\na,x,0,3\nb,y,2,1\n")
    with pytest.raises(DatasetError, match=r"The lowest position is 0, and positions count from 1\. Add 1"):
        prepared(source, examination=str(table))
    source = written(tmp_path / "far.csv", "query,label,position,clicks\na,x,1,3\nb,y,900000000000,1\n")
    assert weights(prepared(source, examination=str(table))) == {("a", "x"): 3, ("b", "y"): 4}


def test_an_error_of_the_database_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would end a long run with a traceback."""
    monkeypatch.setattr(reader, "MOST_MEMORY", 2**21)  # DuckDB needs more for its first block
    monkeypatch.setattr(reader, "LEAST_MEMORY", 2**21)
    source = written(tmp_path / "log.csv", "query,label\n" + "".join(f"query {n},label {n}\n" for n in range(50_000)))
    with pytest.raises(DatasetError, match=r"was not written: the click log cannot be aggregated \(.*Memory") as caught:
        prepared(source)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_column_with_a_known_name_and_another_meaning_can_be_ignored(tmp_path: Path) -> None:
    """A column called position with job titles would make every row bad, and the message would not say why."""
    source = written(tmp_path / "log.csv", "query,label,position\na,x,manager\n")
    hint = "Recognised by name: position; --position-column none ignores such a column."
    with pytest.raises(DatasetError, match=hint):
        prepared(source)
    assert weights(prepared(source, position_column="none")) == {("a", "x"): 1}


def test_attributes_have_names_of_their_own(tmp_path: Path) -> None:
    """A column of the log called id would replace the ids of the labels."""
    source = written(tmp_path / "log.csv", "query,label,id\na,x,3\n")
    with pytest.raises(DatasetError, match="--attribute-column id: labels have a column of this name already"):
        prepared(source, attribute_column=("id",))


def test_attributes_of_a_log_are_texts(tmp_path: Path) -> None:
    """An attribute that is empty at first, or has numbers and texts, would end in a traceback."""
    rows = [{"query": "a", "label": "x", "n": None}] * 3 + [{"query": "b", "label": "x", "n": 7}]
    for name, lines in {"one": rows, "two": [{"query": "c", "label": "y", "n": "seven"}]}.items():
        written(tmp_path / "log" / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    dataset = prepared(tmp_path / "log", attribute_column=("n",))
    assert dataset.label_table.to_pylist() == [
        {"id": "x", "text": "x", "n": "7"},
        {"id": "y", "text": "y", "n": "seven"},
    ]
    written(tmp_path / "log" / "two.jsonl", '{"query": "c", "label": "y", "n": [1]}\n')
    with pytest.raises(DatasetError, match="An attribute of the log has the type list"):
        prepared(tmp_path / "log", attribute_column=("n",))


def log_of_days(
    folder: Path, days: int, *, queries: int = 60, ending: str = "csv", seed: int = 0, files: int = 1
) -> list[Path]:
    """Write a log of some days, each in some files: four labels per query, with renames, zero clicks and spellings."""
    paths = []
    for day in range(days):
        random_day = random.Random(f"{seed} {day}")
        lines = ["query,label,label_text,market,impressions,clicks,date"]
        for _ in range(400):
            query, label = random_day.randrange(queries), random_day.randrange(4)
            text = f"keyword {query} {label}" + (" new" if day >= 3 and query % 20 == 0 else "")
            spelling = random_day.choice(["query {}", "Query {}", "QUERY  {}"]).format(query)
            clicks = random_day.choice([0, 0, 1, 2, 9])
            day_text = (FIRST + timedelta(days=day)).isoformat()
            lines.append(f"{spelling},k{query}-{label},{text},m{label},{clicks + 5},{clicks},{day_text}")
        for number in range(files):
            path = folder / f"log-{day:02}-{number}.{ending}"
            path.parent.mkdir(exist_ok=True)
            rows = lines[1 + 400 * number // files : 1 + 400 * (number + 1) // files]
            content = ("\n".join([lines[0], *rows]) + "\n").encode()
            path.write_bytes(gzip.compress(content, mtime=0) if ending.endswith("gz") else content)
            paths.append(path)
    return paths


def test_test_is_later_than_validation_and_validation_later_than_training(tmp_path: Path) -> None:
    """A model would be tested on the days that it was trained on."""
    log_of_days(tmp_path / "log", 20)
    dataset = prepared(tmp_path / "log", test_days=3, validation=0.1)
    first = {name: dataset.split(name).first_day_V for name in SPLITS}
    last = {name: dataset.split(name).last_day_V for name in SPLITS}
    assert all(len(dataset.split(name)) for name in SPLITS)
    assert min(first["test"]) == np.datetime64("2026-09-18")
    assert min(first["validation"]) >= np.datetime64("2026-09-17")
    assert max(last["validation"]) < np.datetime64("2026-09-18")
    assert max(last["train"]) < np.datetime64("2026-09-17")  # all queries of the day before test are validation queries
    period = dataset.meta.period
    assert period is not None
    assert (period.first_day, period.last_day) == ("2026-09-01", "2026-09-20")
    assert (period.validation_from, period.test_from) == ("2026-09-17", "2026-09-18")
    same = prepared(tmp_path / "log", test_from="2026-09-18", validation=0.1)
    assert same.fingerprint == dataset.fingerprint
    assert len(dataset.meta.days) == 20
    assert sum(day.rows for day in dataset.meta.days.values()) == dataset.meta.accounts["rows"].read == 8000
    with pytest.raises(DatasetError, match="The test period would begin on 2026-09-01, but the log has the days"):
        prepared(tmp_path / "log", test_days=20)
    with pytest.raises(DatasetError, match="--test-days needs a column with dates"):
        prepared(tmp_path / "log", test_days=2, date_column="none")


def test_the_latest_text_of_a_label_wins_and_renames_are_listed(tmp_path: Path) -> None:
    """A renamed keyword would keep the text of the first day, or the rename would go unnoticed."""
    log_of_days(tmp_path / "log", 5, queries=40)
    dataset = prepared(tmp_path / "log", attribute_column=("market",))
    texts = dict(zip(dataset.label_table["id"].to_pylist(), dataset.label_texts, strict=True))
    assert texts["k20-1"] == "keyword 20 1 new"
    assert texts["k21-1"] == "keyword 21 1"
    assert dataset.meta.renames == 8
    lines = (dataset.folder / "renamed-labels.txt").read_text().splitlines()
    assert len(lines) == 8
    assert "label k20-1: 'keyword 20 1' (last on 2026-09-03) is now 'keyword 20 1 new'" in lines
    assert dataset.label_table["market"].to_pylist()[:2] == [
        f"m{identity[-1]}" for identity in dataset.label_table["id"].to_pylist()[:2]
    ]
    assert set(dataset.label_days) == {"first_seen", "last_seen"}
    labels = written(tmp_path / "labels.csv", "id,text,market\nk20-1,from the table,\nk99-9,unseen,x\n")
    settings = PrepareSettings(test=0, validation=0, attribute_column=("market",))
    other, _ = prepare(tmp_path / "log", tmp_path / "other", settings, labels=labels)
    rows = {row["id"]: row for row in other.label_table.to_pylist()}
    assert rows["k20-1"]["text"] == "from the table"
    assert rows["k20-1"]["market"] == "m1"  # the table has none
    assert rows["k99-9"] == {"id": "k99-9", "text": "unseen", "market": "x"}
    assert rows["k20-2"]["text"] == "keyword 20 2 new"


def content(dataset: Dataset) -> dict[str, bytes]:
    """Return the bytes of all files of a dataset."""
    return {path.name: path.read_bytes() for path in sorted(dataset.folder.iterdir())}


@pytest.mark.parametrize(("ending", "files"), [("csv", 1), ("csv.gz", 3)])
def test_a_rolling_window_is_the_same_as_everything_at_once(tmp_path: Path, ending: str, files: int) -> None:
    """A dataset would depend on which days had been read before."""
    paths = log_of_days(tmp_path / "all", 8, ending=ending, files=files)
    settings = PrepareSettings(test_days=1, half_life_days=3)
    cache, window = tmp_path / "cache", tmp_path / "log"
    window.mkdir()
    for first in range(3):
        for path in window.iterdir():
            path.unlink()
        for path in paths[first * files : (first + 6) * files]:
            (window / path.name).symlink_to(path)
        rolling, _ = prepare(window, tmp_path / "rolling", settings, cache=cache, force=True)
        whole, _ = prepare(window, tmp_path / f"whole-{first}" / "rolling", settings)
        assert content(rolling) == content(whole)
    assert len(list(cache.glob("*.cells.parquet"))) == 8 * files + (8 if files > 1 else 0)


@pytest.mark.parametrize("options", [{}, {"position_column": "none"}, {"source_column": "market", "max_share": 0.5}])
def test_the_division_into_files_and_blocks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A log in one file would give another dataset than the same rows in many files."""
    paths = log_of_days(tmp_path / "days", 7, files=2)
    header, *_ = paths[0].read_text().splitlines()
    rows = [line for path in paths for line in path.read_text().splitlines()[1:]]
    written(tmp_path / "log.csv", "\n".join([header, *rows]) + "\n")
    settings = PrepareSettings(test_days=2, half_life_days=5, **options)
    by_day, _ = prepare(tmp_path / "days", tmp_path / "by-day", settings)
    whole, _ = prepare(tmp_path / "log.csv", tmp_path / "whole", settings)
    monkeypatch.setattr("training.prepare.clicks.parts.ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("training.prepare.clicks.blocks.BLOCKS_AT_ONCE", 2)
    monkeypatch.setattr("retrieval.tables.lines.BLOCK", 4_000)
    in_blocks, _ = prepare(tmp_path / "log.csv", tmp_path / "in-blocks", settings)
    assert by_day.fingerprint == whole.fingerprint == in_blocks.fingerprint
    assert by_day.meta.days == whole.meta.days == in_blocks.meta.days
    assert by_day.meta.renames == whole.meta.renames == in_blocks.meta.renames > 0


def test_only_new_files_are_read(tmp_path: Path) -> None:
    """Each day, the whole window would be read again."""
    log_of_days(tmp_path / "log", 3)
    cache = tmp_path / "cache"
    first, _ = prepare(tmp_path / "log", tmp_path / "one", PrepareSettings(), cache=cache)
    before = {path.name: path.stat().st_ino for path in cache.glob("*.parquet")}
    log_of_days(tmp_path / "log", 4)
    prepare(tmp_path / "log", tmp_path / "two", PrepareSettings(), cache=cache)
    after = {path.name: path.stat().st_ino for path in cache.glob("*.parquet")}
    assert before.items() <= after.items()
    assert len([name for name in after if "cells" in name]) == 4
    again, _ = prepare(tmp_path / "log", tmp_path / "three", PrepareSettings(min_clicks=2), cache=cache)
    assert {path.name: path.stat().st_ino for path in cache.glob("*.parquet")} == after
    assert again.meta.accounts["rows"].read == 1600 > first.meta.accounts["rows"].read


@pytest.mark.parametrize("file", ["spellings", "labels", "cells"])
def test_a_damaged_file_of_the_cache_is_named(tmp_path: Path, file: str) -> None:
    """A full disk or a copied cache would end in a traceback, or in a wrong dataset."""
    log_of_days(tmp_path / "log", 3)
    prepare(tmp_path / "log", tmp_path / "one", PrepareSettings(), cache=tmp_path / "cache")
    for path in (tmp_path / "cache").glob(f"*.{file}.parquet"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"cannot be (read|aggregated)"):
        prepare(tmp_path / "log", tmp_path / "two", PrepareSettings(), cache=tmp_path / "cache")
    assert not (tmp_path / "two").exists()


def test_options_are_read_from_source_yaml(tmp_path: Path) -> None:
    """Column names would have to be given on each call; or an option of the command would not override the file."""
    written(tmp_path / "log" / "a.csv", "search,kw\n")
    written(tmp_path / "log" / "source.yaml", "query_column: search\nlabel-column: kw\ntest_days: 2\n")
    for source in (
        str(tmp_path / "log"),
        str(tmp_path / "log" / "a.csv"),
        str(tmp_path / "log" / "*.csv"),
        f"file://{tmp_path}/log",
    ):
        file = read_source_yaml(source)
        settings = merged_settings({"test_days": 3, "min_ctr": None}, file)
        assert (settings.query_column, settings.label_column, settings.test_days) == ("search", "kw", 3)
        assert file is not None
        assert file.location.endswith("log/source.yaml")
    for text, sentence in {
        "query_colum: x": "source.yaml: query_colum is not an option of prepare. Use one of: query_column, ",
        "- a": "source.yaml is not a mapping.",
        "a: [": "source.yaml cannot be read as YAML",
        "min_ctr: high": "source.yaml: min_ctr is 'high'",
        "!!python/object/apply:os.system ['x']": "source.yaml cannot be read as YAML",
    }.items():
        written(tmp_path / "log" / "source.yaml", text)
        with pytest.raises(DatasetError, match=sentence.replace("[", r"\[")) as caught:
            merged_settings({}, read_source_yaml(str(tmp_path / "log")))
        assert "\n" not in str(caught.value)


def test_a_log_in_parquet_gives_the_same_dataset(tmp_path: Path) -> None:
    """Typed columns would be read in another way than text."""
    (path,) = log_of_days(tmp_path / "csv", 1)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    columns = {name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])}
    table = pa.table(columns)
    for name, kind in {"clicks": pa.int32(), "impressions": pa.uint64(), "date": pa.date32()}.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "log.parquet")
    typed = prepared(tmp_path / "parquet" / "log.parquet")
    assert typed.fingerprint == prepared(path).fingerprint


def test_the_row_of_an_unknown_label_is_named(tmp_path: Path) -> None:
    """An operator would not find the row whose label the label table lacks."""
    source = written(tmp_path / "log.csv", "query,label\na,7\nb,9\nc,8\nd,9\n")
    labels = written(tmp_path / "labels.csv", "id,text\n7,shoes\n8,boots\n")
    with pytest.raises(DatasetError, match="has 2 bad rows") as caught:
        prepare(source, tmp_path / "out", PrepareSettings(), labels=labels)
    assert 'log.csv line 3: label "9" is not in column id of labels.csv.' in str(caught.value)
    settings = PrepareSettings(test=0, validation=0, skip_bad_rows=True)
    dataset, _ = prepare(source, tmp_path / "out", settings, labels=labels)
    assert weights(dataset).keys() == {("a", "shoes"), ("c", "boots")}
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["accounts"]["rows"]["skipped"] == {"bad_row": 2}
