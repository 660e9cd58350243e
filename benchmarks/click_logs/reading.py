"""Measure the table reader: rows per second and CPU time per row of each format.

    python -m benchmarks.click_logs.reading [--rows 2000000] [--folder FOLDER]

Writes a click log of five columns (query, label, impressions, clicks, date) and reads all of them. `row by row` reads
the same CSV with Python's csv module and one function call per cell, as the reader did before docs/decisions/0080.
"""

import argparse
import csv
import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from retrieval.tables.columns import Count, Day, Identifier, Parser, Text
from retrieval.tables.table import Table
from retrieval.tables.values import parse_count, parse_day, parse_id, parse_text

COLUMNS: dict[str, Parser] = {
    "query": Text(), "label": Identifier(), "impressions": Count(), "clicks": Count(), "date": Day(),
}  # fmt: skip
WORDS = ["shoes", "running", "winter", "light", "kitchen", "garden", "phone", "café", "naïve", "science", "camera"]
QUERIES, LABELS, DAYS = 300_000, 100_000, 7
LIMIT = 1_000_000


def click_log(rows: int) -> pa.Table:
    """Return a log with texts of three words and a number, a tenth of them not ASCII."""
    random = np.random.default_rng(0)
    words = np.array(WORDS)[random.integers(0, len(WORDS), (QUERIES, 3))]
    queries = pa.array([f"{' '.join(three)} {number}" for number, three in enumerate(words)])
    return pa.table(
        {
            "query": queries.take(pa.array(random.integers(0, QUERIES, rows))),
            "label": pa.array(random.integers(0, LABELS, rows)).cast(pa.string()),
            "impressions": random.integers(1, 50, rows),
            "clicks": random.integers(0, 3, rows),
            "date": pa.array([f"2026-09-0{day + 1}" for day in range(DAYS)]).take(
                pa.array(random.integers(0, DAYS, rows))
            ),
        }
    )


def write_files(folder: Path, table: pa.Table) -> list[Path]:
    """Write the log in several formats."""
    names = ["log.csv", "quoted.csv", "log.csv.gz", "log.parquet", "log.jsonl"]
    paths = [folder / name for name in names]
    arrow_csv.write_csv(table, paths[0], arrow_csv.WriteOptions(quoting_style="none"))
    arrow_csv.write_csv(table, paths[1], arrow_csv.WriteOptions(quoting_style="needed"))
    paths[2].write_bytes(gzip.compress(paths[0].read_bytes(), 6))
    pq.write_table(table, paths[3])
    with paths[4].open("w") as file:
        for batch in table.to_batches():
            for row in batch.to_pylist():
                file.write(
                    f'{{"query": "{row["query"]}", "label": "{row["label"]}", "impressions": {row["impressions"]}, '
                    f'"clicks": {row["clicks"]}, "date": "{row["date"]}"}}\n'
                )
    return paths


def read(path: Path) -> int:
    """Read all columns; return the number of rows."""
    return sum(batch.read for batch in Table(path).batches(COLUMNS))


def read_row_by_row(path: Path) -> int:
    """Read all columns of a gzip file with the csv module; return the number of rows."""
    rows = 0
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            parse_text(cells["query"], "query", LIMIT)
            parse_id(cells["label"], "label", LIMIT)
            parse_count(cells["impressions"], "impressions")
            parse_count(cells["clicks"], "clicks")
            parse_day(cells["date"], "date")
            rows += 1
    return rows


def measure(name: str, call: Callable[[Path], int], path: Path) -> None:
    """Print one row of the table of results."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = call(path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {name} | {path.stat().st_size / 2**20:.0f} | {rows / wall:,.0f} | {cpu / rows * 1e6:.2f} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description="Rows per second and CPU time per row of the table reader.")
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--folder", type=Path, help="where to write the files; default: a temporary folder")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        paths = write_files(Path(folder), click_log(chosen.rows))
        print("| file | MB | rows per second | CPU µs per row |\n|---|---:|---:|---:|")
        for path in paths:
            measure(path.name, read, path)
        measure("log.csv.gz, row by row", read_row_by_row, paths[2])


if __name__ == "__main__":
    main()
