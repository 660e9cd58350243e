"""`diptych predict --engine ray` on a local cluster of two workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.store.paused_labels import PAUSED, write_paused
from tests.support.bundles import WORDS, make_store
from tests.support.command import run
from tests.support.processes import running

pytest.importorskip("ray", reason="the extra `ray` is not installed")

QUERIES = [f"{one} {other}" for one in WORDS for other in WORDS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "store", "one").path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries of three shards."""
    path = tmp_path_factory.mktemp("queries") / "queries.parquet"
    pq.write_table(pa.table({"query": (QUERIES * (20_000 // len(QUERIES) + 1))[:20_000]}), path)
    return path


def predict(store: Path, source: Path, output: Path, *more: str) -> list[str]:
    return ["predict", "--bundle", str(store), "--input", str(source), "--output", str(output), "-k", "3", *more]


RAY = ("--engine", "ray", "--workers", "2")


def diptych(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diptych", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_two_workers_write_the_same_bytes_as_this_process(store: Path, source: Path, tmp_path: Path) -> None:
    """If it fails, answers depend on where they were computed, or workers ignore paused labels or options."""
    (store / PAUSED).write_text(write_paused([WORDS[0], "7"]))
    options = ("--filter", "market=US", "--min-score", "0.01", "--weight", "0.4")
    assert run(*predict(store, source, tmp_path / "embedded.parquet", *options)) == 0
    done = diptych(*predict(store, source, tmp_path / "ray.parquet", *options, *RAY))
    assert done.returncode == 0, done.stderr
    (store / PAUSED).unlink()
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "embedded.parquet").read_bytes()
    assert "20,000 rows read = 20,000 answered" in done.stdout


def test_a_stopped_run_resumes_with_another_engine(store: Path, source: Path, tmp_path: Path) -> None:
    """If it fails, a stopped run on a cluster starts again, hangs, or mixes matches of two runs."""
    output = tmp_path / "matches.parquet"
    shards = tmp_path / ".matches.parquet.shards"
    command = [sys.executable, "-m", "diptych", *predict(store, source, output, *RAY)]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as stopped:
        deadline = time.monotonic() + 120
        while not list(shards.glob("shard-*")) and stopped.poll() is None:
            assert time.monotonic() < deadline, "no shard was written"
            time.sleep(0.01)
        stopped.send_signal(signal.SIGTERM)
        _, told = stopped.communicate(timeout=60)
    if not output.exists():  # it was stopped before the end
        assert stopped.returncode == 143, told
        assert "Rerun the same command to resume" in told
        before = {path: os.stat(path).st_mtime_ns for path in shards.glob("shard-*")}
        assert before
        assert run(*predict(store, source, output)) == 0
    assert run(*predict(store, source, tmp_path / "whole.parquet")) == 0
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_cluster_that_is_not_there_is_one_sentence(store: Path, source: Path, tmp_path: Path) -> None:
    """If it fails, a wrong address ends in a traceback or a long wait."""
    done = diptych(*predict(store, source, tmp_path / "out.parquet", *RAY, "--ray-address", "127.0.0.1:1"))
    assert done.returncode == 1
    assert "the Ray cluster 127.0.0.1:1 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
