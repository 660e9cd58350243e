"""`diptych prepare` on click logs: weights, exposures, columns and attributes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import DatasetError
from tests.support.click_logs import log_of_days, prepared, written
from training.data import Dataset
from training.prepare.clicks import reader
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings, merged_settings
from training.prepare.source_yaml import read_source_yaml


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
