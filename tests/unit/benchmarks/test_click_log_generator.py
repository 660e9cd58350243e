"""benchmarks/click_logs/generate.py: the log has the documented numbers and is reproducible."""

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from benchmarks.click_logs.generate import write_log
from benchmarks.click_logs.synthetic import LogPlan, SyntheticLog
from retrieval.errors import BadInput

ROOT = Path(__file__).resolve().parents[3]
ROWS = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("log")
    command = [sys.executable, "-m", "benchmarks.click_logs.generate", "--out", str(out), "--rows", str(ROWS)]
    command += ["--rows-per-file", "8000"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.startswith("100,000 rows of 7 days; all days have 20,000 pairs, 3,000 queries and 1,000 labels")
    return out


def read_parquet(folder: Path) -> Any:
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "parquet").iterdir()))


def test_numbers_of_rows_and_distinct_values_are_exact(folder: Path) -> None:
    """If it fails, the measurement of 100 million rows is not the one that its page describes."""
    rows = read_parquet(folder)
    assert rows.num_rows == ROWS
    assert rows.group_by(["query", "label"]).aggregate([]).num_rows == ROWS // 5
    distinct = {name: pc.count_distinct(rows[name]).as_py() for name in rows.column_names}
    assert distinct["query"] == 3 * ROWS // 100
    assert distinct["label"] == distinct["label_text"] == ROWS // 100
    assert (distinct["date"], distinct["market"]) == (7, 4)
    assert len(list((folder / "parquet").iterdir())) == 14


def test_counts_have_a_heavy_tail(folder: Path) -> None:
    """If it fails, the log is easier than a real one: few values per group, and no pair without clicks."""
    rows = read_parquet(folder)
    assert pc.all(pc.less_equal(rows["clicks"], rows["impressions"])).as_py()
    clicks_per_pair = rows.group_by(["query", "label"]).aggregate([("clicks", "sum")])["clicks_sum"]
    assert 0.6 < pc.mean(pc.greater(clicks_per_pair, 0).cast(pa.float64())).as_py() < 0.75
    assert pc.max(rows["impressions"]).as_py() > 300 * pc.quantile(rows["impressions"], 0.5)[0].as_py()
    labels_per_query = rows.group_by("query").aggregate([("label", "count_distinct")])["label_count_distinct"]
    assert pc.max(labels_per_query).as_py() > 10 * pc.quantile(labels_per_query, 0.5)[0].as_py()


def test_csv_and_parquet_have_equal_rows(folder: Path) -> None:
    """If it fails, the two formats are not comparable, or quotes and commas in texts change the columns."""
    paths = sorted((folder / "csv.gz").iterdir())
    read = pa.concat_tables(pa.csv.read_csv(path) for path in paths)
    expected = read_parquet(folder)
    assert read.cast(expected.schema).equals(expected)
    text = gzip.decompress(paths[0].read_bytes()).decode()
    quoted = [line for line in text.splitlines() if '"' in line]
    assert 0 < len(quoted) < 0.05 * len(text.splitlines())


def test_a_day_can_be_written_again(folder: Path, tmp_path: Path) -> None:
    """If it fails, day 31 of a window belongs to another log than the first 30."""
    plan = LogPlan(ROWS, rows_per_file=8000)
    assert write_log(SyntheticLog(plan), tmp_path, ["csv.gz", "parquet"], [3], workers=1) == plan.rows_of(3)
    for path in tmp_path.rglob("2026*"):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
        assert path.name.startswith("2026-09-04-")


@pytest.mark.parametrize("rows", [9_000, 10**9], ids=["too few", "too many"])
def test_sizes_without_enough_texts_or_labels_are_refused(rows: int) -> None:
    """If it fails, the numbers of distinct values are wrong without a message."""
    with pytest.raises(BadInput, match="rows"):
        LogPlan(rows)
