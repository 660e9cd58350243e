"""Measure `diptych predict` on many queries: memory, speed, and resuming after an interruption.

The command runs in a separate process. Its memory is measured with and without pages of the bundle's mapped files,
which the kernel can reclaim.
"""

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring.systems import ROOT
from retrieval.errors import BadInput

QUERIES_PER_GROUP = 65_536
FIRST_SHARD_TIMEOUT = 600  # seconds


@dataclass(frozen=True)
class OfflineCost:
    """Cost of one search of `queries` queries; peak memory in bytes, without and with pages of mapped files."""

    queries: int
    seconds: float
    processor_seconds: float
    private_bytes: int
    mapped_bytes: int
    matches: int


def measure(store: Path, texts: Sequence[str], queries: int, folder: Path, weight: float | None) -> OfflineCost:
    """Search `queries` variations of real queries."""
    source, target = folder / f"queries-{queries}.parquet", folder / f"matches-{queries}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    write_queries(source, texts, queries)
    target.unlink(missing_ok=True)
    started = time.perf_counter()
    watched = WatchedProcess(_command(store, source, target, weight))
    watched.wait()
    seconds = time.perf_counter() - started
    return OfflineCost(
        queries, seconds, watched.processor_seconds, watched.private_bytes, watched.mapped_bytes,
        pq.read_metadata(target).num_rows,
    )  # fmt: skip


def measure_resume(
    store: Path, texts: Sequence[str], queries: int, folder: Path, weight: float | None
) -> tuple[int, bool]:
    """Interrupt a run with Ctrl-C after its first shard and resume it.

    Returns the number of finished shards at the interruption, and whether the matches equal those of an uninterrupted
    run.
    """
    source, reference = folder / f"queries-{queries}.parquet", folder / f"matches-{queries}.parquet"
    target = folder / "interrupted.parquet"
    target.unlink(missing_ok=True)
    command = _command(store, source, target, weight)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, shards = time.monotonic() + FIRST_SHARD_TIMEOUT, target.with_name(f".{target.name}.shards")
    while not list(shards.glob("shard-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait()
    written = len(list(shards.glob("shard-*")))
    WatchedProcess(command).wait()
    return written, pq.read_table(target).equals(pq.read_table(reference))


def write_queries(path: Path, texts: Sequence[str], queries: int) -> None:
    """Write real queries, then variations with a word of another query, up to `queries` rows."""
    if path.is_file() and pq.read_metadata(path).num_rows == queries:
        return
    varied, schema = variations(texts), pa.schema([("query", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, queries, QUERIES_PER_GROUP):
            group = list(itertools.islice(varied, min(QUERIES_PER_GROUP, queries - start)))
            writer.write_table(pa.table({"query": group}, schema))


def variations(texts: Sequence[str]) -> Iterator[str]:
    """Yield the texts, then variations without end."""
    yield from texts
    words, draw = sorted({word for text in texts for word in text.split()}), np.random.default_rng(0)
    while True:
        for text, word in zip(texts, draw.choice(words, len(texts)), strict=True):
            yield f"{text} {word}"


class WatchedProcess:
    """A process with its CPU time and peak memory, sampled ten times per second."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.private_bytes = self.mapped_bytes = 0
        self.processor_seconds = 0.0

    def wait(self) -> None:
        """Wait until it ends. Raises BadInput with its last line if it fails."""
        while self._process.poll() is None:
            try:
                memory, times = self._process.memory_info(), self._process.cpu_times()
            except psutil.NoSuchProcess:
                break
            self.private_bytes = max(self.private_bytes, memory.rss - memory.shared)
            self.mapped_bytes = max(self.mapped_bytes, memory.rss)
            self.processor_seconds = times.user + times.system
            time.sleep(0.1)
        _, errors = self._process.communicate()
        if self._process.returncode:
            raise BadInput(
                f"diptych predict ended with code {self._process.returncode}: {errors.strip().splitlines()[-1]}"
            )


def _command(store: Path, source: Path, target: Path, weight: float | None) -> list[str]:
    command = [sys.executable, "diptych.py", "predict", "--bundle", str(store.resolve())]
    command += ["--input", str(source.resolve()), "--output", str(target.resolve())]
    return command if weight is None else [*command, "--weight", str(weight)]
