"""Measure `diptych prepare` on a synthetic click log: time, memory, a rolling window, and an older checkout's reader.

    python -m benchmarks.click_logs.generate --out LOG --rows 100000000
    python -m benchmarks.click_logs.preparing LOG --work FOLDER [--formats csv.gz parquet] [--reader OLD_CHECKOUT]

    python -m benchmarks.click_logs.generate --out LOG31 --rows 110000000 --pairs 5000000 --days 31 --formats parquet
    python -m benchmarks.click_logs.preparing LOG31 --work FOLDER --formats parquet --window

Without --window, each format is prepared with an empty cache, and the datasets must be equal. --reader alternates the
two checkouts on 1 % of the rows. With --window, the first 30 days are prepared with an empty cache, then days 2 to 31
with that cache and with an empty one: the two last datasets must have equal bytes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.click_logs.generate import FORMATS, write_csv
from benchmarks.click_logs.synthetic import SCHEMA
from benchmarks.measuring.running import count, run_command
from retrieval.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("--test-days", "1")
OLD_OPTIONS = ("--label-column", "label_text", "--count-column", "clicks")
DESCRIPTIONS = ("dataset.json", "dataset.html")  # they name the source files
HEAD = ["| | rows | seconds | CPU seconds | peak MiB | rows/s |", "|---|---:|---:|---:|---:|---:|"]


@dataclass(frozen=True)
class Cost:
    """The cost of a process: seconds, CPU seconds of all its threads, and peak resident memory."""

    seconds: float
    cpu_seconds: float
    peak_mib: float

    def row(self, title: str, rows: int) -> str:
        """Return a row of a table."""
        figures = f"{self.seconds:,.1f} | {self.cpu_seconds:,.1f} | {self.peak_mib:,.0f} | {rows / self.seconds:,.0f}"
        return f"| {title} | {rows:,} | {figures} |"


def prepare(source: Path, out: Path, options: Sequence[str], checkout: Path = ROOT) -> Cost:
    """Run `diptych prepare` of a checkout; its output goes to OUT.log. Raises DatasetError if it fails."""
    shutil.rmtree(out, ignore_errors=True)
    log = out.with_name(f"{out.name}.log")
    command = [sys.executable, "-m", "diptych", "prepare", str(source), "--out", str(out), "--name", "log", *options]
    begin = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise DatasetError(f"`{' '.join(command)}` ended with code {process.returncode}; {log} has the cause.")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def different_files(first: Path, second: Path, without: Sequence[str] = ()) -> list[str]:
    """Return the names of files whose bytes differ between two folders, or that only one of them has."""
    names = {path.relative_to(folder).as_posix() for folder in (first, second) for path in _files(folder)}
    return sorted(name for name in names - set(without) if not _equal(first / name, second / name))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _equal(first: Path, second: Path) -> bool:
    if not (first.is_file() and second.is_file()) or first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while block := one.read(1 << 20):
            if block != other.read(1 << 20):
                return False
    return True


def _agreement(differences: Sequence[str], compared: str) -> str:
    return f"{compared}: {'equal bytes' if not differences else 'DIFFERENT: ' + ', '.join(differences)}."


def days_of(log: Path, suffix: str) -> dict[str, list[Path]]:
    """Return the files of each day. Raises DatasetError if there are none."""
    days: dict[str, list[Path]] = {}
    for path in sorted((log / suffix).glob(f"*.{suffix}")):
        days.setdefault(path.name[:10], []).append(path)
    if not days:
        raise DatasetError(f"{log} has no files *.{suffix}. Write them with benchmarks/click_logs/generate.py.")
    return days


def rows_of(days: dict[str, list[Path]], log: Path) -> int:
    """Return the number of rows of some days, from the Parquet files of the same names, or else by counting lines."""
    return sum(_rows(path, log) for paths in days.values() for path in paths)


def _rows(path: Path, log: Path) -> int:
    parquet = log / "parquet" / f"{path.name.split('.')[0]}.parquet"
    if parquet.is_file():
        return int(pq.read_metadata(parquet).num_rows)
    return int(pyarrow.csv.read_csv(path).num_rows)


def measure_formats(options: argparse.Namespace) -> list[str]:
    """Prepare each format with an empty cache; return a table."""
    lines, outs = list(HEAD), []
    for suffix in options.formats:
        days, out, cache = days_of(options.log, suffix), options.work / f"dataset-{suffix}", options.work / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cost = prepare(options.log / suffix, out, [*options.options, "--cache", str(cache)])
        shutil.rmtree(cache, ignore_errors=True)
        lines.append(cost.row(suffix, rows_of(days, options.log)))
        outs.append(out)
    if len(outs) == 2:
        lines += ["", _agreement(different_files(outs[0], outs[1], DESCRIPTIONS), "Datasets of the two formats")]
    return lines


def measure_window(options: argparse.Namespace) -> list[str]:
    """Prepare all days but the last, then all but the first with and without the cache; return a table."""
    suffix = options.formats[0]
    days = days_of(options.log, suffix)
    first, second = dict(list(days.items())[:-1]), dict(list(days.items())[1:])
    cache, empty = options.work / "cache", options.work / "cache-empty"
    for folder in (cache, empty):
        shutil.rmtree(folder, ignore_errors=True)
    costs = {}
    for title, window, folder in (("full", first, cache), ("added", second, cache), ("scratch", second, empty)):
        source = link_window(window, options.work / title / "window")
        costs[title] = prepare(source, options.work / f"dataset-{title}", [*options.options, "--cache", str(folder)])
    differences = different_files(options.work / "dataset-added", options.work / "dataset-scratch")
    share = costs["added"].seconds / costs["full"].seconds
    cpu_share = costs["added"].cpu_seconds / costs["full"].cpu_seconds
    return [
        *HEAD,
        costs["full"].row(f"{len(first)} days, empty cache", rows_of(first, options.log)),
        costs["added"].row("next day, with the cache", rows_of(second, options.log)),
        costs["scratch"].row("the same days, empty cache", rows_of(second, options.log)),
        "",
        f"Adding a day takes {share:.1%} of the time and {cpu_share:.1%} of the CPU time of the full preparation.",
        _agreement(differences, "With the cache and from an empty one"),
    ]


def link_window(days: dict[str, list[Path]], folder: Path) -> Path:
    """Make a folder with hard links to the files of some days; return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (path for paths in days.values() for path in paths):
        os.link(path, folder / path.name)
    return folder


def measure_reader(options: argparse.Namespace) -> list[str]:
    """Prepare 1 % of the rows with this checkout and with an older one, alternating; return a table of medians."""
    lines = ["", f"1 % of the rows, median of {options.rounds} rounds, alternating:", "", *HEAD]
    for suffix in options.formats:
        days = days_of(options.log, suffix)
        source, rows = write_sample(days, rows_of(days, options.log) // 100, options.work / f"sample.{suffix}")
        costs: dict[str, list[Cost]] = {"before": [], "now": []}
        for _ in range(options.rounds):
            costs["before"].append(prepare(source, options.work / "sample-before", OLD_OPTIONS, options.reader))
            costs["now"].append(prepare(source, options.work / "sample-now", ()))
        for title, of in costs.items():
            cost = Cost(*(median(getattr(one, name) for one in of) for name in ("seconds", "cpu_seconds", "peak_mib")))
            lines.append(f"{cost.row(f'{suffix}, {title}', rows)}")
    return lines


def write_sample(days: dict[str, list[Path]], rows: int, path: Path) -> tuple[Path, int]:
    """Write the first rows of the first file; return the path and the number of rows."""
    first = next(iter(days.values()))[0]
    table = pq.read_table(first) if first.suffix == ".parquet" else pyarrow.csv.read_csv(first).cast(SCHEMA)
    table = table.slice(0, max(rows, 1))
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        write_csv(table, path)
    return path, int(table.num_rows)


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Run the chosen measurements; write the page and return its path."""
    options.work.mkdir(parents=True, exist_ok=True)
    lines = measure_window(options) if options.window else measure_formats(options)
    if options.reader is not None:
        lines += measure_reader(options)
    page: Path = options.markdown or options.work / "preparing.md"
    page.write_text("\n".join(["# Preparing a click log", "", *lines]) + "\n", encoding="utf-8")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return page


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description="Cost of `diptych prepare` on a click log.")
    parser.add_argument("log", type=Path, help="--out of benchmarks/click_logs/generate.py")
    parser.add_argument("--work", type=Path, required=True, help="folder for datasets, on the disk of the log")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=list(OPTIONS), help="of `prepare`; last option")
    parser.add_argument("--window", action="store_true", help="measure a window that moves by one day")
    parser.add_argument("--reader", type=Path, help="an older checkout, compared on 1 %% of the rows")
    parser.add_argument("--rounds", type=count, default=3, help="of --reader")
    parser.add_argument("--markdown", type=Path, help="default: WORK/preparing.md")
    options = parser.parse_args(arguments)
    for name in ("log", "work", "reader"):
        path = getattr(options, name)
        setattr(options, name, path and path.resolve())
    return options


if __name__ == "__main__":
    sys.exit(run_command(measure, parse()))
