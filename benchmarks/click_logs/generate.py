"""Write a synthetic click log as CSV.gz and Parquet, for measurements of `diptych prepare`.

    python -m benchmarks.click_logs.generate --out FOLDER [--rows 100000000] [--pairs 20000000] [--days 7]
        [--formats csv.gz parquet]

Each day has several files, FOLDER/csv.gz/2026-09-01-00.csv.gz and FOLDER/parquet/2026-09-01-00.parquet, with equal rows
in both formats. `--only-days 31` writes only that day of a plan with more days. See benchmarks/click_logs/synthetic.py.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.click_logs.synthetic import ROWS_PER_FILE, LogPlan, SyntheticLog
from benchmarks.measuring.running import count
from retrieval.errors import DiptychError

FORMATS = ("csv.gz", "parquet")
BLOCK_ROWS = 250_000  # of one gzip call
GZIP = 16 + zlib.MAX_WBITS


def csv_bytes(rows: Any) -> Any:
    """Return the CSV lines of a table as a buffer. Only values that need quotes have them, as most programs write."""
    arrays = [column.combine_chunks() for column in rows.columns]
    columns = [_quoted(array) if array.type == pa.string() else array.cast(pa.string()) for array in arrays]
    lines = pc.binary_join_element_wise(*columns[:-1], pc.binary_join_element_wise(columns[-1], "\n", ""), ",")
    return lines.buffers()[2]


def _quoted(values: Any) -> Any:
    needs_quotes = pc.match_substring_regex(values, '[",\r\n]')
    if not pc.any(needs_quotes).as_py():
        return values
    escaped = pc.replace_substring(values.filter(needs_quotes), '"', '""')
    return pc.replace_with_mask(values, needs_quotes, pc.binary_join_element_wise('"', escaped, '"', ""))


def write_csv(rows: Any, path: Path) -> None:
    """Write a table as CSV.gz with a header, at the fastest level of gzip, without a time in its header."""
    compressor = zlib.compressobj(1, wbits=GZIP)
    with path.open("wb") as file:
        file.write(compressor.compress((",".join(rows.column_names) + "\n").encode()))
        for start in range(0, rows.num_rows, BLOCK_ROWS):
            file.write(compressor.compress(csv_bytes(rows.slice(start, BLOCK_ROWS))))
        file.write(compressor.flush())


def write_file(log: SyntheticLog, out: Path, formats: Sequence[str], day: int, file: int) -> int:
    """Write one file of a day in each format; return its number of rows."""
    rows = log.rows(day, file)
    name = f"{log.plan.date_of(day).isoformat()}-{file:02d}"
    for suffix in formats:
        path = out / suffix / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "parquet":
            pq.write_table(rows, path, compression="zstd", row_group_size=BLOCK_ROWS)
        else:
            write_csv(rows, path)
    return int(rows.num_rows)


def write_log(log: SyntheticLog, out: Path, formats: Sequence[str], days: Sequence[int], workers: int) -> int:
    """Write the files of some days, numbered from 0, in parallel; return the number of rows."""
    log.query_texts_Q, log.label_texts_L, log.label_ids_L, log.query_P  # noqa: B018  computed once, before the threads
    with ThreadPoolExecutor(workers) as pool:
        files: list[Future[int]] = [
            pool.submit(write_file, log, out, formats, day, file)
            for day in days
            for file in range(log.plan.files_of(day))
        ]
        return sum(future.result() for future in files)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description="Write a synthetic click log.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=count, default=100_000_000, help="rows of all days")
    parser.add_argument("--pairs", type=count, help="distinct (query, label) pairs of all days; default: a fifth")
    parser.add_argument("--days", type=count, default=7)
    parser.add_argument("--only-days", type=count, nargs="+", metavar="DAY", help="write only these days, from 1")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quoted", type=float, default=0.01, help="share of texts that CSV must quote")
    parser.add_argument("--rows-per-file", type=count, default=ROWS_PER_FILE)
    parser.add_argument("--workers", type=count, default=2)
    return parser.parse_args(arguments)


def main() -> int:
    """Write the log and print the time. Prints an error and returns 1 for options that do not fit."""
    options = parse()
    days = options.only_days or range(1, options.days + 1)
    begin = time.perf_counter()
    try:
        form = options.seed, options.quoted, options.rows_per_file, options.pairs
        plan = LogPlan(options.rows, options.days, *form)
        if max(days) > plan.days:
            print(f"error: --only-days {max(days)} is not one of {plan.days} days.", file=sys.stderr)
            return 1
        rows = write_log(SyntheticLog(plan), options.out, options.formats, [day - 1 for day in days], options.workers)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - begin
    print(
        f"{rows:,} rows of {len(days)} days; all days have {plan.n_pairs:,} pairs, {plan.n_queries:,} queries and "
        f"{plan.n_labels:,} labels; {seconds:.1f} s, {rows / seconds:,.0f} rows/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
