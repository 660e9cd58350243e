"""The transport of a response: head and body are written together."""

from types import SimpleNamespace
from typing import Any

from service.connections.response_transport import ResponseTransport

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"body"


def made(response_started: bool = True) -> tuple[ResponseTransport, list[bytes], SimpleNamespace]:
    """Return a transport, what its connection wrote, and the connection."""
    written: list[bytes] = []
    connection: Any = SimpleNamespace(
        cycle=SimpleNamespace(response_started=response_started),
        write_response=written.append,
        request_is_arriving=False,
        transport=SimpleNamespace(close=lambda: written.append(b"closed")),
    )
    return ResponseTransport(connection), written, connection


def test_head_and_body_are_written_together() -> None:
    """Every answer would cost a second system call and a second packet."""
    transport, written, _ = made()
    for data in (HEAD, BODY, b"more", b"last"):
        transport.write(data)
    assert written == [HEAD + BODY, b"more", b"last"]


def test_a_head_without_a_body_is_sent() -> None:
    """A client would wait for the body of a HEAD response forever."""
    transport, written, _ = made()
    transport.write(HEAD)
    transport.flush()
    transport.flush()
    assert written == [HEAD]


def test_closing_sends_what_is_held() -> None:
    """The answer to HTTP/1.0 or to `Connection: close` would be lost when it has no body."""
    transport, written, _ = made()
    transport.write(HEAD)
    transport.close()
    assert written == [HEAD, b"closed"]


def test_continue_is_sent_at_once() -> None:
    """A client that waits for `100 Continue` would not send its body."""
    transport, written, connection = made(response_started=False)
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    connection.cycle.response_started = True
    transport.write(HEAD)
    transport.write(BODY)
    assert written[1:] == [HEAD + BODY]
