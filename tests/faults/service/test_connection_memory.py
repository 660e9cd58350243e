"""Clients that send much and finish nothing, or never read: their memory is limited, and others are served."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from service.observe.metrics import resident_bytes
from tests.support.bundles import make_store
from tests.support.service import PATIENCE, Client, Service, figures, serving, wait_until

RED = {"queries": ["red"]}
BUDGET = 1 << 24
BESIDE = 40_000_000  # bytes of objects, and of what the allocator keeps
CLIENTS = 60
FEW_CLIENTS = 24
SENT = 1_000_000  # bytes by each of them
POST = b"POST /predict HTTP/1.1\r\nHost: test\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HOSTILE = {
    "stalled body": POST + b"Content-Length: %d\r\n\r\n" % (SENT + 10) + b" " * SENT,
    "stalled chunk": CHUNKED + b"f4240\r\n" + b" " * (SENT - 10),
    "tiny chunks": CHUNKED + b"1\r\n \r\n" * 4_000,
    "large chunks": CHUNKED + (b"2000\r\n" + b" " * 0x2000 + b"\r\n") * 120,
    "trailers": b"GET /livez HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:b\r\n" * 200_000,
    "headers": POST + b"a:b\r\n" * 200_000,
    "one header": POST + b"X: " + b"x" * SENT,
    "extension": CHUNKED + b"1;" + b"x" * SENT,
    "pipelined": (b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n" * 30_000)[:SENT],
    "empty lines": b"\r\n" * (SENT // 2),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    store = make_store(tmp_path_factory.mktemp("memory") / "store", "first")
    with serving(store.path, connection_bytes=BUDGET, receive_seconds=PATIENCE, send_seconds=PATIENCE) as service:
        assert service.ask("POST", "/predict", RED).status == 200
        yield service


def resident(service: Service) -> int:
    resident = resident_bytes(service.process.pid)
    assert resident
    return resident


def pushed(service: Service, content: bytes, patience: float = 0.2) -> Client:
    """Return a client that has sent as much of the content as the service read."""
    client = service.client()
    client._socket.settimeout(patience)
    with suppress(OSError):  # the service has closed the connection, or reads no further
        client._socket.sendall(content)
    client._socket.settimeout(PATIENCE)
    return client


@pytest.mark.parametrize("kind", HOSTILE)
def test_received_bytes_of_all_clients_are_limited(service: Service, kind: str) -> None:
    """Sixty clients would take sixty megabytes, or twenty times as much in objects; thousands would take all memory."""
    before = resident(service)
    # with more clients, the turns of small chunks are rarer, and the wait at the end would take 40 s
    clients = FEW_CLIENTS if kind == "tiny chunks" else CLIENTS
    hostile = [pushed(service, HOSTILE[kind]) for _ in range(clients)]
    try:
        assert service.ask("POST", "/predict", RED).status == 200
        assert figures(service)["diptych_connection_bytes"] <= BUDGET
        assert resident(service) - before < BUDGET + BESIDE
    finally:
        for client in hostile:
            client.close()
    wait_until(lambda: figures(service)["diptych_connection_bytes"] == 0)


def test_unread_answers_are_bounded_together(service: Service) -> None:
    """Clients that request large answers and do not read them would fill the memory."""
    big = json.dumps({"queries": ["red winter city"] * 256, "k": 100}).encode()
    request = POST + b"Content-Length: %d\r\n\r\n" % len(big) + big
    before, hostile = resident(service), []
    for _ in range(CLIENTS):
        client = service.client()
        client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client._socket.sendall(request * 3)
        hostile.append(client)
    try:
        assert service.ask("POST", "/predict", RED).status == 200
        wait_until(lambda: figures(service)["diptych_unfinished_requests"] == 0)  # all answers have been written
        assert resident(service) - before < BUDGET + BESIDE
    finally:
        for client in hostile:
            client.close()
    wait_until(lambda: figures(service)["diptych_connection_bytes"] == 0)


def test_stalled_uploads_are_ended_to_free_memory(service: Service) -> None:
    """Stalled uploads would keep the memory, and every large request would be refused."""
    fits = BUDGET % SENT - 100_000  # beside as many whole ones as the budget takes
    part = POST + b"Content-Length: %d\r\n\r\n" % SENT + b" " * fits
    stalled = [pushed(service, content, PATIENCE) for content in [part, *[HOSTILE["stalled body"]] * 20]]
    held = stalled[: BUDGET // SENT * 3 // 4]  # those that came first, and were not refused
    body = json.dumps(RED).encode() + b" " * 950_000
    try:
        wait_until(lambda: figures(service)["diptych_connection_bytes"] > 0.95 * BUDGET)
        wait_until(lambda: service.ask("POST", "/predict", body).status == 200)
        ended, _, _ = select.select([client._socket for client in held], [], [], PATIENCE)
        (first, *_) = [client for client in held if client._socket in ended]
        assert (first.finish().status, first._stream.read(1)) == (503, b"")
    finally:
        for client in stalled:
            client.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_many_headers_are_refused_as_one_large_one_is(service: Service, method: str) -> None:
    """A head of thousands of tiny headers would pass the byte limit and cost thirty times its size."""
    for head in (b"a: b\r\n" * 101 + b"\r\n", b"a: b\r\n" * 101):
        with closing(service.client()) as client:
            client._socket.sendall(f"{method} /livez HTTP/1.1\r\n".encode() + head)
            answer = client._stream.read()
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert (b"too_many_headers" in answer) == (method == "GET")


def test_a_hundred_headers_are_accepted(service: Service) -> None:
    """A client behind many proxies, which each add a header, would be refused."""
    with closing(service.client()) as client:
        client._socket.sendall(b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 100 + b"\r\n")
        assert client.finish().status == 200


def test_connections_that_stall_make_room_for_others(tmp_path: Path) -> None:
    """A client that sends one and a half requests on every connection would lock out all others."""
    store = make_store(tmp_path / "store", "first")
    with serving(store.path, max_connections=5, receive_seconds=2) as service:
        hostile = [service.client() for _ in range(5)]
        for client in hostile:
            assert client.get("/livez").status == 200
            client._socket.sendall(POST)
        wait_until(lambda: service.ask("POST", "/predict", RED).status == 200)
        for client in hostile:
            client.close()
