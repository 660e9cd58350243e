"""Listening addresses, the limit of open files, and signals."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.settings import Settings
from tests.support.bundles import make_store
from tests.support.service import PATIENCE, end, serving, wait_until

LISTENS = re.compile(r"serving bundle .* on http://(\[::\]|[\d.]+):(\d+)")


@pytest.fixture(scope="module")
def words_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("listening") / "store", "first").path


@contextmanager
def started(
    store: Path, log: Path, *options: str, before: Callable[[], None] | None = None
) -> Iterator[tuple["subprocess.Popen[bytes]", str, int]]:
    """Start a service; yield its process, the host that its log names, and the port."""
    command = [sys.executable, "-m", "diptych", "serve", "--store", str(store), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, preexec_fn=before)
    try:
        found = wait_until(lambda: LISTENS.search(log.read_text()) or process.poll() is not None)
        assert isinstance(found, re.Match), log.read_text()
        yield process, found[1], int(found[2])
    finally:
        end(process)


def answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), PATIENCE) as client:
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.1 200")
    except ConnectionRefusedError:
        return False


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_of_ipv6_is_all_of_ipv4_too(words_store: Path, tmp_path: Path) -> None:
    """A container that listens on all addresses would refuse every client on IPv4."""
    with started(words_store, tmp_path / "log", "--host", "::") as (_, host, port):
        assert host == "[::]"
        assert answers("127.0.0.1", port)
        assert answers("::1", port)


def test_an_empty_host_means_the_default(words_store: Path, tmp_path: Path) -> None:
    """An empty variable in a script would open the service to the whole network."""
    assert Settings.load(store=words_store, host="").host == "127.0.0.1"
    with started(words_store, tmp_path / "log", "--host", "") as (_, host, port):
        assert host == "127.0.0.1"
        assert answers("127.0.0.1", port)


def test_sighup_ends_as_sigterm_does(words_store: Path) -> None:
    """Closing a terminal, or a supervisor's reload, would break every request in flight."""
    with serving(words_store) as service:
        (engine,) = service.engines()
        os.kill(engine, signal.SIGSTOP)
        client = service.client()
        client.begin("POST", "/predict", b'{"queries": ["red"]}')
        wait_until(lambda: "diptych_unfinished_requests 1.0" in service.ask("GET", "/metrics").body.decode())
        os.kill(engine, signal.SIGHUP)
        service.process.send_signal(signal.SIGHUP)
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP: stopping" in service.log)
        os.kill(engine, signal.SIGCONT)
        assert client.finish().status == 200
        assert service.process.wait(PATIENCE) == 0


def test_nohup_is_obeyed(words_store: Path, tmp_path: Path) -> None:
    """A service that was started to outlive its terminal would end with it."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with started(words_store, tmp_path / "log", before=ignore) as (process, host, port):
        process.send_signal(signal.SIGHUP)
        assert answers(host, port)
        process.terminate()  # which would be handled after SIGHUP
        assert process.wait(PATIENCE) == 0
        assert "SIGHUP" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("files", "connections"), [(1000, 744), (128, 64)])
def test_a_low_limit_of_files_allows_fewer_connections(
    words_store: Path, tmp_path: Path, files: int, connections: int
) -> None:
    """The service would not start on a machine with a low limit of open files."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with started(words_store, tmp_path / "log", before=lower) as (_, host, port):
        assert answers(host, port)
        log = (tmp_path / "log").read_text()
        assert f"may open only {files} files, so {connections} connections are allowed" in log
        with ExitStack() as clients:
            for _ in range(2 * files):
                clients.enter_context(socket.create_connection((host, port), PATIENCE))
            assert answers(host, port)
