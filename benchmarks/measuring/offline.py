"""`diptych predict` on many queries: memory, speed, and whether it goes on after a stop.

The command runs as a user runs it, in a process of its own whose memory is watched from outside: what it holds itself,
and with it the pages of the bundle's files, which the system takes back when it needs them.
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
PATIENCE = 600  # seconds for the first part to be written


@dataclass(frozen=True)
class Offline:
    """What matching so many queries took; bytes at most held by the process, alone and with mapped files."""

    queries: int
    seconds: float
    processor_seconds: float
    own_bytes: int
    mapped_bytes: int
    matches: int


def measure(store: Path, texts: Sequence[str], queries: int, folder: Path, weight: float | None) -> Offline:
    """Match `queries` variations of real ones."""
    source, target = folder / f"queries-{queries}.parquet", folder / f"matches-{queries}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    write_queries(source, texts, queries)
    target.unlink(missing_ok=True)
    started = time.perf_counter()
    watched = WatchedProcess(_command(store, source, target, weight))
    watched.wait()
    seconds = time.perf_counter() - started
    return Offline(
        queries, seconds, watched.processor_seconds, watched.own_bytes, watched.mapped_bytes,
        pq.read_metadata(target).num_rows,
    )  # fmt: skip


def goes_on(store: Path, texts: Sequence[str], queries: int, folder: Path, weight: float | None) -> tuple[int, bool]:
    """Stop a run with Ctrl-C after its first shard and start it again.

    How many shards the second run found, and whether the matches are those of a run that was never stopped.
    """
    source, whole = folder / f"queries-{queries}.parquet", folder / f"matches-{queries}.parquet"
    target = folder / "stopped.parquet"
    target.unlink(missing_ok=True)
    command = _command(store, source, target, weight)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, shards = time.monotonic() + PATIENCE, target.with_name(f".{target.name}.shards")
    while not list(shards.glob("shard-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait()
    written = len(list(shards.glob("shard-*")))
    WatchedProcess(command).wait()
    return written, pq.read_table(target).equals(pq.read_table(whole))


def write_queries(path: Path, texts: Sequence[str], queries: int) -> None:
    """Real queries, and behind them the same with a word of another one, until there are so many."""
    if path.is_file() and pq.read_metadata(path).num_rows == queries:
        return
    varied, schema = variations(texts), pa.schema([("query", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, queries, QUERIES_PER_GROUP):
            part = list(itertools.islice(varied, min(QUERIES_PER_GROUP, queries - start)))
            writer.write_table(pa.table({"query": part}, schema))


def variations(texts: Sequence[str]) -> Iterator[str]:
    """Without end."""
    yield from texts
    words, draw = sorted({word for text in texts for word in text.split()}), np.random.default_rng(0)
    while True:
        for text, word in zip(texts, draw.choice(words, len(texts)), strict=True):
            yield f"{text} {word}"


class WatchedProcess:
    """A process and the most memory it held, looked at several times a second."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.own_bytes = self.mapped_bytes = 0
        self.processor_seconds = 0.0

    def wait(self) -> None:
        """Until it ends; BadInput with its last line when it fails."""
        while self._process.poll() is None:
            try:
                memory, times = self._process.memory_info(), self._process.cpu_times()
            except psutil.NoSuchProcess:
                break
            self.own_bytes = max(self.own_bytes, memory.rss - memory.shared)
            self.mapped_bytes = max(self.mapped_bytes, memory.rss)
            self.processor_seconds = times.user + times.system
            time.sleep(0.1)
        _, told = self._process.communicate()
        if self._process.returncode:
            raise BadInput(
                f"diptych predict ended with code {self._process.returncode}: {told.strip().splitlines()[-1]}"
            )


def _command(store: Path, source: Path, target: Path, weight: float | None) -> list[str]:
    command = [sys.executable, "diptych.py", "predict", "--bundle", str(store.resolve())]
    command += ["--input", str(source.resolve()), "--output", str(target.resolve())]
    return command if weight is None else [*command, "--weight", str(weight)]
