"""A real `diptych serve` process on a free loopback port, and plain clients to ask it.

    with serving(store) as service:
        status, headers, body = service.client().post("/predict", {"queries": ["red shoes"]})

`python -m tests.support.service STORE --rate 20 --requests 400` prints the latency of single queries on a calm server.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 60.0  # seconds until a test gives up waiting; no test asserts on time
ADMIN_KEY = "the administrator's key"


class Reply(NamedTuple):
    """One HTTP answer, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One keep-alive connection; sends bytes as they are, so that a test can send nonsense."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")

    def get(self, path: str) -> Reply:
        return self.send("GET", path, b"")

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", path, content, **headers)

    def send(self, method: str, path: str, body: bytes, **headers: str) -> Reply:
        self.begin(method, path, body, **headers)
        return self.finish()

    def begin(self, method: str, path: str, body: bytes, **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def begin_chunked(self, path: str, chunks: list[bytes]) -> None:
        """A body whose length nobody is told, without its end."""
        self._socket.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        self._socket.sendall(b"".join(chunks))

    def finish(self) -> Reply:
        status = int(self._stream.readline().split()[1])
        headers = {}
        while (line := self._stream.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Reply(status, headers, self._stream.read(int(headers.get("content-length", 0))))

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


class Service:
    """The process, where it listens and what it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.port = int(self.wait_for_log(r"serving bundle .* on http://127\.0\.0\.1:(\d+)"))

    @property
    def log(self) -> str:
        """What it has logged so far, in whole lines: the last one may still be on its way into the file."""
        return "".join(line for line in self._log.read_text().splitlines(True) if line.endswith("\n"))

    def client(self) -> Client:
        return Client(self.port)

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        """One request on a connection of its own."""
        client = self.client()
        try:
            return client.send(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)
        finally:
            client.close()

    def activate(self, bundle: str) -> Reply:
        return self.ask("POST", "/admin/activate", {"bundle": bundle}, X_Admin_Key=ADMIN_KEY)

    def engines(self) -> list[int]:
        """Process ids of the engines, which are the service's only children."""
        return children(self.process.pid)

    def wait_for_log(self, pattern: str) -> str:
        """The first group of `pattern` once the log matches it."""
        found = wait_until(lambda: re.search(pattern, self.log) or self._ended())
        if not isinstance(found, re.Match):
            raise AssertionError(f"the service ended with {self.process.returncode}: {self.log}")
        return str(found[1] if found.re.groups else found[0])

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def _ended(self) -> bool:
        return self.process.poll() is not None


def children(pid: int) -> list[int]:
    """Processes that a living process has started from its main thread; its other threads come and go."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def process_state(pid: int) -> str:
    """As Linux says: T for stopped, Z for ended; empty when nothing is left of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def wait_until(condition: Any) -> Any:
    """What `condition` returns once it is true; fails when it never is."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        time.sleep(0.01)
    return found


def figures(service: Service) -> dict[str, float]:
    """Every figure of /metrics by its name with labels."""
    lines = service.ask("GET", "/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def start(store: Path, log: Path, port: object = 0, **settings: object) -> "subprocess.Popen[bytes]":
    """`diptych serve`, by default on a free port; its settings as the environment gives them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIPTYCH_ADMIN_KEY": ADMIN_KEY}
    environment |= {f"DIPTYCH_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "diptych", "serve", "--store", str(store), "--port", str(port)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


@contextmanager
def serving(store: Path, **settings: object) -> Iterator[Service]:
    """A service that is ready; ended with its engines when the block ends, whatever happened in it."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = start(store, log, **settings)
        try:
            yield Service(process, log)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Load:
    """A few clients that ask without a pause, each on its own connection, until the block ends."""

    def __init__(self, service: Service, bodies: list[bytes], clients: int) -> None:
        self._service = service
        self._bodies = bodies
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[number]) for number in range(clients)]
        self.replies: list[tuple[bytes, Reply]] = []
        self.errors: list[Exception] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _run(self, number: int) -> None:
        try:
            client = self._service.client()
            while not self._ending.is_set():
                body = self._bodies[number % len(self._bodies)]
                self.replies.append((body, client.post("/predict", body)))
                number += 1
            client.close()
        except Exception as error:  # noqa: BLE001  # whatever a client meets is what the test wants to see
            self.errors.append(error)


def calm_latency(service: Service, bodies: list[bytes], rate: float, requests: int) -> list[float]:
    """Milliseconds of single requests sent `rate` a second over one connection, in ascending order."""
    client = service.client()
    latencies = []
    begin = time.perf_counter()
    for number in range(requests):
        time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        sent = time.perf_counter()
        assert client.post("/predict", bodies[number % len(bodies)]).status == 200
        latencies.append((time.perf_counter() - sent) * 1e3)
    client.close()
    return sorted(latencies[requests // 20 :])


def main() -> None:
    options = argparse.ArgumentParser(description="Latency of single queries on a calm server.")
    options.add_argument("store", type=Path)
    options.add_argument("--rate", type=float, default=50)
    options.add_argument("--requests", type=int, default=500)
    options.add_argument("--queries", type=Path, help="one query a line")
    given = options.parse_args()
    texts = given.queries.read_text().splitlines() if given.queries else ["cheap running shoes", "red winter city"]
    bodies = [json.dumps({"queries": [text]}).encode() for text in texts]
    with serving(given.store) as service:
        calm_latency(service, bodies, 1000, 200)
        found = calm_latency(service, bodies, given.rate, given.requests)
        p50, p99 = (found[int(len(found) * share)] for share in (0.5, 0.99))
        print(f"{len(found)} requests at {given.rate:g}/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {found[-1]:.2f} ms")
        print(service.ask("POST", "/predict", bodies[0]).headers["server-timing"])


if __name__ == "__main__":
    main()
