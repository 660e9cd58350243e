"""Compare the engines of `diptych predict`: this process with as many threads as workers, and workers of Ray.

    python benchmarks/batch_engines.py STORE QUERIES [--repeat 20] [--workers 2] [-k 10]

QUERIES is a text file, a query per line, which is repeated until the search takes longer than starting a cluster. Each
engine is a new process. Both files must have the same bytes. Prints seconds and queries per second, with the start.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring.running import count
from benchmarks.measuring.systems import ROOT


def main() -> int:
    """Measure and print; return 1 if the files differ."""
    parser = argparse.ArgumentParser(description="Cost of a batch search by engine.")
    parser.add_argument("store", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--repeat", type=count, default=20)
    parser.add_argument("--workers", type=count, default=2)
    parser.add_argument("-k", type=count, default=10)
    options = parser.parse_args()
    queries = [line for line in options.queries.read_text(encoding="utf-8").splitlines() if line.strip()]
    queries *= options.repeat
    engines = {
        "embedded": ["--threads", str(options.workers)],
        "ray": ["--engine", "ray", "--workers", str(options.workers), "--threads", "1"],
    }
    with TemporaryDirectory() as folder:
        source = Path(folder) / "queries.parquet"
        pq.write_table(pa.table({"query": queries}), source)
        outputs = {}
        for name, arguments in engines.items():
            target = Path(folder) / f"{name}.parquet"
            seconds = _predict(options, source, target, arguments)
            outputs[name] = target.read_bytes()
            print(f"{name:>8}: {seconds:6.1f} s for {len(queries):,} queries, {len(queries) / seconds:,.0f} per second")
    if outputs["ray"] != outputs["embedded"]:
        print("error: the files differ", file=sys.stderr)
        return 1
    return 0


def _predict(options: argparse.Namespace, source: Path, target: Path, arguments: list[str]) -> float:
    command = [sys.executable, "-m", "diptych", "predict", "--bundle", str(options.store.resolve()), "-k"]
    command += [str(options.k), "--input", str(source), "--output", str(target), *arguments]
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
