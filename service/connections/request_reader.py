"""Feed the HTTP parser one request at a time: a complete head, then exactly its body.

uvicorn parses all bytes as they arrive. Thousands of pipelined requests then become thousands of tasks, a partial head
becomes an object per header, and the body of a request with an upgrade offer is lost.
"""

from abc import abstractmethod
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.connections.framing import HEAD_END, ChunkedBody, HeadLimits, check_beginning, without_upgrade
from service.errors import Refusal

MAX_LENGTH_DIGITS = 19  # of Content-Length; no body is that long
CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT = b"content-length", b"transfer-encoding", b"expect"
FRAMING_HEADERS = frozenset({CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT})


class RequestReader(HttpToolsProtocol):
    """uvicorn's connection, which stops parsing at the end of each request."""

    __slots__ = (
        "_arriving_since", "_body", "_chunked", "_done", "_head", "_head_limits", "_length", "_lingering_since",
        "_started", "_turn_ended", "_upgrade",
    )  # fmt: skip

    def __init__(self, head_limits: HeadLimits, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self._head_limits = head_limits
        self._head: bytearray | None = None  # an incomplete head
        self._length = 0  # bytes of the body that the head declares
        self._chunked = False
        self._body: int | ChunkedBody | None = None  # remaining bytes, or the tracker of a chunked body
        self._arriving_since = 0.0  # loop time when the arriving request began; 0: none is arriving
        self._started = False  # the application has the request that is arriving or being answered
        self._done = False  # the parser has reached the end of a request
        self._turn_ended = False  # enough has been read for now
        self._upgrade = False  # the parser expects another protocol after the head
        self._lingering_since = 0.0  # loop time when it began to discard all input; 0: it does not

    @abstractmethod
    def _buffer_pipelined(self, data: bytes, start: int) -> None:
        """Buffer bytes of later requests."""

    @abstractmethod
    def _count_arriving(self, size: int) -> None:
        """Count bytes of a request that is still arriving."""

    @abstractmethod
    def _refuse(self, refusal: Refusal, reason: str | None = None) -> None:
        """Send a refusal without the application, and close."""

    def _receive(self, data: bytes) -> None:
        """Feed the parser the bytes of one request; buffer the rest."""
        start, size = 0, len(data)
        self._done = self._turn_ended = False
        try:
            while start < size and not (self._done or self._turn_ended or self._lingering_since):
                start = self._read_head(data, start) if self._body is None else self._read_body(data, start)
        except Refusal as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._lingering_since or self.transport.is_closing():
            return
        if start < size:
            self._buffer_pipelined(data, start)
        if self._arriving_since:
            self._count_arriving(start)

    def _read_head(self, data: bytes, start: int) -> int:
        """Buffer a head until it is complete, then parse it. Return the position after it. Raises Refusal."""
        if self._head is None:
            if data[start] in b"\r\n":  # empty lines may precede a request
                start = len(data) - len(data[start:].lstrip(b"\r\n"))
                if start == len(data):
                    return start
            end = data.find(HEAD_END, start)
            if end >= 0:
                end += len(HEAD_END)
                self._parse_head(data[start:end])
                return end
            self._head = bytearray()
            self._arriving_since = self.loop.time()
        return self._continue_head(self._head, data, start)

    def _continue_head(self, head: bytearray, data: bytes, start: int) -> int:
        before, limits = len(head), self._head_limits
        head += data[start : start + limits.max_bytes + len(HEAD_END)]
        end = head.find(HEAD_END, max(0, before - len(HEAD_END) + 1))
        if end < 0:
            check_beginning(head)
            limits.check(len(head), head.count(b"\n") - 1)  # without the request line
            return len(data)
        end += len(HEAD_END)
        complete = bytes(head[:end])
        self._parse_head(complete)
        self._head = None
        return start + end - before

    def _parse_head(self, head: bytes) -> None:
        lines, limits = head.count(b"\n") - 2, self._head_limits  # without the first and the empty one
        if len(head) > limits.max_bytes or lines > limits.max_headers:
            self._head = bytearray(head)  # the response to HEAD has no body
            limits.check(len(head), lines)
        self._length, self._chunked = 0, False
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        if self._chunked and self._body is not None:
            self._body = ChunkedBody(limits, len(head), lines)

    def _ignore_upgrade(self) -> None:
        """Parse the head again without the upgrade offer, after which the parser would expect another protocol."""
        self._upgrade = False
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("CONNECT is not supported")
        head = without_upgrade(method, self.url, self.parser.get_http_version(), self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self._length, self._chunked = 0, False
        self.parser.feed_data(head)

    def _read_body(self, data: bytes, start: int) -> int:
        body = self._body
        if isinstance(body, int):
            end = min(len(data), start + body)
            self._body = body - (end - start)
        else:
            assert body is not None
            end = body.end_in(data, start)
            self._turn_ended = end < len(data)
        self.parser.feed_data(data[start:end])
        return end

    def on_message_begin(self) -> None:
        if self._done:
            raise ValueError("another request begins where this one should have ended")
        super().on_message_begin()
        self._started = False
        if not self._arriving_since:
            self._arriving_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._body is not None:
            return  # trailers are ignored
        name = name.lower()
        self.headers.append((name, value))
        if name in FRAMING_HEADERS:
            self._read_framing(name, value)

    def _read_framing(self, name: bytes, value: bytes) -> None:
        """Store the length of the body. Raises ValueError when it cannot be determined."""
        if name == CONTENT_LENGTH:
            if len(value) > MAX_LENGTH_DIGITS:
                raise ValueError("Content-Length has too many digits")
            self._length = int(value)
        elif name == TRANSFER_ENCODING:
            if value.strip().lower() != b"chunked" or self.parser.get_http_version() == "1.0":
                raise ValueError("the only transfer coding is chunked, in HTTP/1.1")
            self._chunked = True
        elif value.strip().lower() == b"100-continue":
            self.expect_100_continue = self.parser.get_http_version() != "1.0"
