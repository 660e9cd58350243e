"""A real `diptych serve` process on a free loopback port, and plain clients to ask it.

    with serving(store) as service:
        status, headers, body = service.ask("POST", "/predict", {"queries": ["red shoes"]})

A request whose client is closed, or garbage-collected, is cancelled by the service: hold a client with `with` for as
long as its request runs.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

PATIENCE = 60.0  # seconds until a test gives up waiting; no test asserts on time
LOG_SHOWN = 4000  # characters of a service's log that are shown when a test fails
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        """Send a chunked body without its last chunk."""
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
    """A running service: its process, its port and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.port = int(self.wait_for_log(r"serving bundle .* on http://127\.0\.0\.1:(\d+)"))

    @property
    def log(self) -> str:
        """The whole lines logged so far; the last line may still be incomplete in the file."""
        return "".join(line for line in self._log.read_text().splitlines(True) if line.endswith("\n"))

    def client(self) -> Client:
        return Client(self.port)

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        """Send one request on a connection of its own."""
        with self.client() as client:
            return client.send(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)

    def activate(self, bundle: str) -> Reply:
        return self.ask("POST", "/admin/activate", {"bundle": bundle}, X_Admin_Key=ADMIN_KEY)

    def engines(self) -> list[int]:
        """Return the process ids of the engines, which are the service's only children."""
        return children(self.process.pid)

    @contextmanager
    def engine_stopped(self) -> Iterator[None]:
        """Stop the only engine while the block runs; requests wait."""
        (engine,) = self.engines()
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    def wait_for_log(self, pattern: str) -> str:
        """Wait until the log matches `pattern`; return its first group, or the whole match."""
        result = wait_until(lambda: re.search(pattern, self.log) or self._ended())
        if not isinstance(result, re.Match):
            raise AssertionError(f"the service ended with {self.process.returncode}: {self.log}")
        return str(result[1] if result.re.groups else result[0])

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def _ended(self) -> bool:
        return self.process.poll() is not None


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of a living process has started; its other threads come and go."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def process_state(pid: int) -> str:
    """Return the state that Linux shows: T for stopped, Z for ended; empty for a process that does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between open and read
        return ""


def has_ended(pid: int) -> bool:
    """Return whether a process has ended. Where no process reaps orphans, an ended one stays as a zombie."""
    return process_state(pid) in ("", "Z")


def command_line(pid: int) -> list[str]:
    """Return the words of a process's command line; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, as the store's own commands do: a service that watches it never reads a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.replace(path)


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Call `condition` until it returns something true, and return that. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition did not hold within {seconds:g} s; its last value is {result!r}")
        time.sleep(0.01)
    return result


def figures(service: Service) -> dict[str, float]:
    """Return every value of /metrics by its name with labels."""
    lines = service.ask("GET", "/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def start(store: Path, log: Path, port: object = 0, **settings: object) -> "subprocess.Popen[bytes]":
    """Start `diptych serve`, by default on a free port, with settings in its environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIPTYCH_ADMIN_KEY": ADMIN_KEY}
    environment |= {f"DIPTYCH_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "diptych", "serve", "--store", str(store), "--port", str(port)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def ended_with(store: Path, log: Path, **settings: object) -> tuple[int, str]:
    """Start a service that must end by itself; return its exit code and its log."""
    process = start(store, log, **settings)
    try:
        return process.wait(PATIENCE), log.read_text()
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM and wait until the process has ended; kill it when it does not end in time."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def serving(store: Path, **settings: object) -> Iterator[Service]:
    """Run a service that is ready; it ends with its engines when the block ends. A failed test shows its log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = start(store, log, **settings)
        try:
            yield Service(process, log)
        except BaseException as error:
            error.add_note(f"The end of the service's log:\n{log.read_text(errors='replace')[-LOG_SHOWN:]}")
            raise
        finally:
            end(process)


class Load:
    """Clients that send requests without a pause, each on its own connection, until the block ends."""

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
            thread.join(2 * PATIENCE)  # a client gives up by itself after PATIENCE
        assert not any(thread.is_alive() for thread in self._threads), "a client of the load does not end"

    def _run(self, number: int) -> None:
        try:
            with self._service.client() as client:
                while not self._ending.is_set():
                    body = self._bodies[number % len(self._bodies)]
                    self.replies.append((body, client.post("/predict", body)))
                    number += 1
        except Exception as error:  # noqa: BLE001  # the test checks every error that a client met
            self.errors.append(error)


def calm_latency(service: Service, bodies: list[bytes], rate: float, requests: int) -> list[float]:
    """Return the milliseconds of single requests, `rate` per second over one connection, in ascending order."""
    latencies = []
    with service.client() as client:
        begin = time.perf_counter()
        for number in range(requests):
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            sent = time.perf_counter()
            assert client.post("/predict", bodies[number % len(bodies)]).status == 200
            latencies.append((time.perf_counter() - sent) * 1e3)
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
        ms = calm_latency(service, bodies, given.rate, given.requests)
        p50, p99 = (ms[int(len(ms) * share)] for share in (0.5, 0.99))
        print(f"{len(ms)} requests at {given.rate:g}/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {ms[-1]:.2f} ms")
        print(service.ask("POST", "/predict", bodies[0]).headers["server-timing"])


if __name__ == "__main__":
    main()
