"""Other services to compare with: environments, commands, and a context manager that runs one in a process."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring.systems import ROOT
from benchmarks.peers.environments import Environment
from retrieval.errors import DiptychError

START_TIMEOUT = 1800.0  # seconds; a peer encodes every label before it listens
STOP_TIMEOUT = 10.0
STACK = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")  # versions of constraints.txt
NAIVE = Environment(
    "sentence-transformers-service",
    (
        *STACK,
        "sentence-transformers==6.2.0",
        "hnswlib==0.8.0",
        "numpy==2.4.6",
        "tokenizers==0.23.3",
        "torch==2.13.0",
        "transformers==5.23.0",
    ),
)
INFINITY = Environment(  # needs older versions of numpy, transformers and uvicorn
    "infinity",
    ("infinity-emb[server,torch]==0.0.78", "hnswlib==0.8.0", "numpy==1.26.4", "torch==2.13.0", "transformers==4.57.6"),
)
SCHEMATHESIS = Environment("schemathesis", ("schemathesis==4.32.5",))


def ready_command(answer: Path, *, by_hand: bool) -> list[str]:
    """Return the command of the FastAPI route that returns the bytes of `answer`."""
    return [sys.executable, "-m", "benchmarks.peers.ready_service", str(answer), *(["--by-hand"] if by_hand else [])]


@contextmanager
def peer(command: Sequence[str], log: Path) -> Iterator[int]:
    """Run a peer with a free port as its last argument; yield the port. Raises DiptychError if it ends early."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(port)], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        _wait_for_port(process, port, log)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DiptychError(f"a peer ended with code {process.returncode} before it listened; {log} has the cause.")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise DiptychError(f"a peer did not listen within {START_TIMEOUT:.0f} s; {log} has the cause.")
