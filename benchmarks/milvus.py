"""Compare an index in a real Milvus server with the embedded one; switch bundles, and kill and restart it, under load.

    python -m venv milvus-server && milvus-server/bin/pip install 'setuptools<70' milvus==2.3.5
    python -m benchmarks.milvus CHECKPOINT DATASET --server-python milvus-server/bin/python --work FOLDER

Milvus 2.3.5 is the standalone server on PyPI. Loopback only. Clients and server share the machine's cores.
"""

import argparse
import collections
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from retrieval import open_bundle
from tests.support.command import run
from tests.support.service import Load, Service, serving
from training.data.dataset import Dataset

QUERIES, K, RATE = 500, 10, 20.0
PROGRAM = """
import sys
from milvus import MilvusServer
server = MilvusServer()
server.set_base_dir(sys.argv[1])
server.listen_port = int(sys.argv[2])
server.start()
print(server.server_proc.pid, flush=True)
sys.stdin.read()
server.stop()
"""


class RealServer:
    """A standalone Milvus server, which keeps its data when it is killed and started again."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python, self._folder = python, folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self) -> float:
        """Start the server; return the seconds until it is ready."""
        started = time.perf_counter()
        command = [str(self._python), "-c", PROGRAM, str(self._folder), str(self.port)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._script = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self._script.stdout is not None
        self._pid = int(self._script.stdout.readline())
        return time.perf_counter() - started

    def kill(self) -> None:
        """Kill the server and the script that started it."""
        os.kill(self._pid, signal.SIGKILL)
        self._script.kill()
        self._script.wait()


def main() -> None:
    """Export, load and activate; then measure agreement, latency, a switch and an outage."""
    parser = argparse.ArgumentParser(description="An index in Milvus against the embedded one.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--server-python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    server = RealServer(options.server_python, options.work / "milvus")
    print(f"server started in {server.start():.0f} s", flush=True)
    os.environ |= {"DIPTYCH_MILVUS_URL": f"http://127.0.0.1:{server.port}", "DIPTYCH_MILVUS_PREFIX": "benchmark"}
    try:
        store = options.work / "store"
        export(options.checkpoint, store)
        queries = Dataset.open(options.dataset).split("test").texts[:QUERIES]
        compare(store, queries)
        serve(store, queries, server)
    finally:
        server.kill()


def export(checkpoint: Path, store: Path) -> None:
    """Export one embedded bundle and two whose index is in Milvus, and load these."""
    for name, *rest in (
        ("embedded", "--index", "hnsw"),
        ("first", "--index", "milvus"),
        ("second", "--index", "milvus", "--m", "24"),
    ):
        if not (store / "bundles" / name).exists():
            assert run("export", checkpoint, "--store", store, "--name", name, *rest) == 0
    for name in ("first", "second"):
        started = time.perf_counter()
        assert run("bundles", "load", store, name) == 0
        print(f"loaded {name} in {time.perf_counter() - started:.1f} s", flush=True)
    assert run("bundles", "activate", store, "first") == 0


def compare(store: Path, queries: list[str]) -> None:
    """Print the agreement of the bundles' answers at several weights."""
    with open_bundle(store / "bundles" / "embedded") as one, open_bundle(store / "bundles" / "first") as other:
        for weight in (None, 0.0, 0.5, 1.0):
            pairs = zip(one.search(queries, K, weight=weight), other.search(queries, K, weight=weight), strict=True)
            overlaps, deviations = [], [0.0]
            for a, b in pairs:
                scores = {hit.id: hit.score for hit in a}
                common = [hit for hit in b if hit.id in scores]
                overlaps.append(len(common) / max(len(a), 1))
                deviations += [abs(scores[hit.id] - hit.score) for hit in common]
            shown = "default" if weight is None else f"{weight:g}"
            print(
                f"weight {shown}: overlap@{K} {np.mean(overlaps):.4f}, largest score deviation {max(deviations):.1e}",
                flush=True,
            )


def serve(store: Path, queries: list[str], server: RealServer) -> None:
    """Print latency, a switch under load, and a restart of the server under load."""
    bodies = [json.dumps({"queries": [query], "k": K}).encode() for query in queries]
    settings = {"milvus_wait_seconds": 90, "deadline_seconds": 150, "watch_seconds": 0, "keep_previous": "true"}
    with serving(store, **settings) as service:
        for name in ("first", "embedded"):
            if name != "first":
                service.activate(name)
            latency(name, service, bodies)
        service.activate("first")
        with counted("four switches between collections", service, bodies):
            for name in ("second", "first", "second", "first"):
                assert service.activate(name).status == 200
                time.sleep(1)
        with counted("kill and restart of the server", service, bodies):
            time.sleep(2)
            server.kill()
            time.sleep(3)
            print(f"server restarted in {server.start():.0f} s", flush=True)
            time.sleep(10)


def latency(name: str, service: Service, bodies: list[bytes]) -> None:
    """Print the latency of single requests at a calm rate."""
    milliseconds = []
    with service.client() as client:
        for number in range(len(bodies) + 50):
            sent = time.perf_counter()
            assert client.post("/predict", bodies[number % len(bodies)]).status == 200
            milliseconds.append((time.perf_counter() - sent) * 1e3)
            time.sleep(max(0.0, 1 / RATE - (time.perf_counter() - sent)))
    p50, p99 = np.percentile(milliseconds[50:], [50, 99])
    print(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {len(bodies)} requests at {RATE:g}/s", flush=True)


@contextmanager
def counted(what: str, service: Service, bodies: list[bytes]) -> Iterator[None]:
    """Send load during the block, and print how many requests had which status."""
    load = Load(service, bodies, clients=2)
    with load:
        yield
    statuses = dict(collections.Counter(reply.status for _, reply in load.replies))
    print(f"{what}: statuses {statuses}, {len(load.errors)} connection errors", flush=True)


if __name__ == "__main__":
    main()
