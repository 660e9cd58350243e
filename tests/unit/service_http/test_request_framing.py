"""The end of a request, compared with the HTTP parser; and the limits around a body."""

import random
from typing import Any

import httptools
import pytest

from service.connections.framing import (
    CHUNKS_PER_TURN,
    MAX_CHUNK_LINE,
    MAX_CHUNKS,
    ChunkedBody,
    HeadLimits,
    check_beginning,
    without_upgrade,
)
from service.errors import Refusal

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMITS = HeadLimits(2_000, 20)


class Seen:
    """Collect what the parser reads of a request."""

    def __init__(self) -> None:
        self.body = b""
        self.messages = 0

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1

    def on_header(self, *_: Any) -> None:
        pass


def bodies() -> list[bytes]:
    draw = random.Random(20261130)
    made = []
    for _ in range(200):
        chunks = []
        for _ in range(draw.randint(0, 6)):
            data = draw.choice([b"x", b"\r\n", b"0\r\n\r\n", b"a" * 300, b"\r\n\r\n5\r\n"])
            size = draw.choice([b"%x", b"%X", b"00%x"]) % len(data)
            chunks.append(size + draw.choice([b"", b";a=b", b';a="c;d"']) + b"\r\n" + data + b"\r\n")
        trailers = draw.choice([b"", b"A: b\r\n", b"A: b\r\nC: 0\r\n"])
        made.append(b"".join(chunks) + draw.choice([b"0", b"000", b"0;last"]) + b"\r\n" + trailers + b"\r\n")
    return made


@pytest.mark.parametrize("seed", range(3))
def test_a_chunked_body_ends_where_the_parser_ends_it(seed: int) -> None:
    """A request after a chunked one would be read as its body, or its body as a request."""
    draw = random.Random(seed)
    for body in bodies():
        stream = body + b"GET / HTTP/1.1\r\n\r\n"
        seen, ends, place = Seen(), ChunkedBody(LIMITS, len(HEAD), 2), 0
        parser = httptools.HttpRequestParser(seen)
        parser.feed_data(HEAD)
        while not seen.messages:
            piece = stream[place : place + draw.choice([1, 2, 3, 7, 50, 5000])]
            end = ends.end_in(piece, 0)
            parser.feed_data(piece[:end])
            place += end
            assert seen.messages or end == len(piece)
        assert place == len(body)
        assert seen.messages == 1


def refused(data: bytes, piece: int = 10_000) -> int:
    """Return the status with which a body in pieces of `piece` bytes is refused; 0 when it is accepted."""
    body, place = ChunkedBody(LIMITS, len(HEAD), 2), 0
    try:
        while place < len(data):
            place += body.end_in(data[place : place + piece], 0)
    except Refusal as refusal:
        return refusal.status
    return 0


@pytest.mark.parametrize("piece", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"0\r\n" + b"a: b\r\n" * 30, 431),
        (b"0\r\na: " + b"x" * 3_000, 431),
        (b"1;" + b"x" * 2 * MAX_CHUNK_LINE, 431),
        (b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n.\r\n" * 100, 431),
        (b"0" * 2 * MAX_CHUNK_LINE, 431),
        (b"1\r\n.\r\n" * (MAX_CHUNKS + 1), 413),
    ],
    ids=["trailers", "one trailer", "extension", "extensions", "zeros", "chunks"],
)
def test_trailers_and_chunk_extensions_have_a_limit(data: bytes, status: int, piece: int) -> None:
    """Endless trailers, chunk extensions or chunks of one byte would be read, and stored."""
    assert refused(data, piece) == status


def test_many_chunks_are_read_in_turns() -> None:
    """One segment with thousands of chunks would keep all other clients waiting."""
    data = b"1\r\n.\r\n" * 2 * CHUNKS_PER_TURN
    assert ChunkedBody(LIMITS, len(HEAD), 2).end_in(data, 0) < len(data)


def test_a_head_without_an_upgrade_is_otherwise_the_same() -> None:
    """Removing an upgrade offer would change the request, or leave a part of the offer."""
    headers = [
        (b"host", b"a"), (b"connection", b"Upgrade, keep-alive, HTTP2-Settings"), (b"upgrade", b"h2c"),
        (b"http2-settings", b"AAMA"), (b"content-length", b"2"),
    ]  # fmt: skip
    expected = b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n"
    assert without_upgrade(b"POST", b"/x", "1.1", headers) == expected


@pytest.mark.parametrize("head", [b"\x16\x03\x01", b"get / HTTP/1.1", b"GET / HTTP/1.1\n", b"hello", b"A" * 40])
def test_an_invalid_beginning_is_detected_at_once(head: bytes) -> None:
    """A client of another protocol would wait ten seconds for the refusal."""
    with pytest.raises(httptools.HttpParserError):
        check_beginning(bytearray(head))


@pytest.mark.parametrize("head", [b"G", b"GET", b"M-SEARCH ", b"POST /predict HTTP/1.1\r", b"GET / HTTP/1.1\r\nHost"])
def test_the_beginning_of_a_head_may_go_on(head: bytes) -> None:
    """A request that arrives in two segments would be refused."""
    check_beginning(bytearray(head))
