"""benchmarks/click_logs/preparing.py and benchmarks/click_logs/weights.py, each run to its end on a small log."""

import json
import lzma
import re
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.click_logs import preparing
from benchmarks.click_logs import weights as click_weights
from benchmarks.click_logs.generate import write_log
from benchmarks.click_logs.preparing import OLD_OPTIONS, ROOT, different_files, prepare
from benchmarks.click_logs.synthetic import LogPlan, SyntheticLog
from retrieval.errors import DatasetError

CONSOLE = Console(quiet=True)
ROW = re.compile(r"\| [\d,]+ \| [\d.,]+ \| [\d.,]+ \| [\d,]+ \| [\d,]+ \|$")  # rows, seconds, CPU seconds, MiB, rows/s


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Folder of a synthetic log of three days."""
    plan = LogPlan(12_000, days=3, rows_per_file=3_000)
    write_log(SyntheticLog(plan), tmp_path / "log", ["csv.gz", "parquet"], range(3), workers=1)
    return tmp_path / "log"


def test_formats_and_readers_are_compared(log: Path, tmp_path: Path) -> None:
    """If it fails, the time and memory of `prepare` cannot be measured, or the formats give different datasets."""
    options = ["--rounds", "1", "--reader", str(ROOT)]
    page = preparing.measure(preparing.parse([str(log), "--work", str(tmp_path / "work"), *options]), CONSOLE)
    lines = page.read_text().splitlines()
    measured = [line.split(" | ")[:2] for line in lines if ROW.search(line)]
    assert measured[:2] == [["| csv.gz", "12,000"], ["| parquet", "12,000"]]
    assert [title for title, _ in measured[2:]] == [
        f"| {suffix}, {title}" for suffix in ("csv.gz", "parquet") for title in ("before", "now")
    ]
    assert "Datasets of the two formats: equal bytes." in lines


def test_a_window_that_moves_by_a_day_is_measured(log: Path, tmp_path: Path) -> None:
    """If it fails, the cost of one more day is unknown, or cached days give another dataset than new ones."""
    options = preparing.parse([str(log), "--work", str(tmp_path / "work"), "--formats", "parquet", "--window"])
    lines = preparing.measure(options, CONSOLE).read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines if ROW.search(line)] == [
        ["| 2 days, empty cache", "8,000"],
        ["| next day, with the cache", "8,000"],
        ["| the same days, empty cache", "8,000"],
    ]
    assert any(line.startswith("Adding a day takes ") for line in lines)
    assert "With the cache and from an empty one: equal bytes." in lines


def test_a_failed_preparation_names_its_log(tmp_path: Path) -> None:
    """If it fails, a measurement ends with figures of a command that did not run."""
    source = tmp_path / "log.csv"
    source.write_text("query\nred\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"ended with code 1; .*dataset\.log has the cause"):
        prepare(source, tmp_path / "dataset", OLD_OPTIONS)


def test_different_files_are_named(tmp_path: Path) -> None:
    """If it fails, a dataset that depends on the cache passes as equal."""
    texts = {
        "first": {"same": "1", "changed": "1", "longer": "1", "only": "1"},
        "second": {"same": "1", "changed": "2"},
    }
    texts["second"]["longer"] = "11"
    for folder, files in texts.items():
        for name, text in files.items():
            (tmp_path / folder / "in").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "in" / name).write_text(text, encoding="utf-8")
    differences = different_files(tmp_path / "first", tmp_path / "second")
    assert differences == ["in/changed", "in/longer", "in/only"]
    assert different_files(tmp_path / "first", tmp_path / "second", without=differences) == []


def test_variants_are_trained_and_compared_with_the_truth(tmp_path: Path) -> None:
    """If it fails, the effect of click weights and of position weighting cannot be measured."""
    queries = tmp_path / "queries.jsonl.xz"
    rows = [{"query": f"query {n}", "labels": [f"label {n % 9}", f"label {n % 7 + 9}"]} for n in range(80)]
    queries.write_bytes(lzma.compress("\n".join(map(json.dumps, rows)).encode()))
    command = ["--out", str(tmp_path / "out"), "--queries", str(queries), "--sets", "simulated", "unweighted"]
    command += ["--days", "5", "--searches", "20000", "--seeds", "1", "--variants", "α = 0", "α = 1"]
    command += ["--set", "optimizer.epochs=1", "--set", "encoder.dim=16"]
    lines = click_weights.measure(click_weights.parse(command), CONSOLE).read_text().splitlines()
    by_set = "\n".join(lines).split("## ")[1:]
    assert [page.split("\n")[0] for page in by_set] == ["simulated", "unweighted"]
    overlaps = [dict(re.findall(r"^\| ([a-z ]+) \| [\d.]+ \| ([\d.]+) \|$", page, re.MULTILINE)) for page in by_set]
    assert float(overlaps[0]["estimated"]) > float(overlaps[0]["clicks"])
    assert list(overlaps[1]) == ["weights of the training split"]
    assert all(re.search(r"^\| α = 1 \|( [\d.]+ \|){10} [+-][\d.]+ \(.* … .*\) \|$", page, re.M) for page in by_set)
