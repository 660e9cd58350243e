"""Find the end of each request before the HTTP parser reads it, and limit head, trailers and chunks.

The parser cannot stop between two requests and creates objects for every header. Therefore it gets one request at a
time, and a head only when it is complete. The parser alone decides what is valid: it reads every byte that is measured
here, in the same order.
"""

import re
from collections.abc import Sequence

from httptools import HttpParserError

from service.errors import Refusal

HEAD_END = b"\r\n\r\n"
LINE_END = b"\r\n"
HEX = re.compile(rb"[0-9A-Fa-f]+")
METHOD = re.compile(rb"[A-Z][A-Z-]{0,31}(?: |\Z)")
MAX_CHUNKS = 4096  # per body; each costs a few microseconds, independent of its size
CHUNKS_PER_TURN = 64  # chunks that are read before other connections get a turn
MAX_CHUNK_LINE = 1024  # bytes of a chunk's size and extensions
HOP_BY_HOP = {b"upgrade", b"http2-settings"}  # headers that offer another protocol


class HeadLimits:
    """Limits of bytes and header lines of one request outside its body: head, chunk extensions, trailers."""

    __slots__ = ("max_bytes", "max_headers")

    def __init__(self, max_bytes: int, max_headers: int) -> None:
        self.max_bytes = max_bytes
        self.max_headers = max_headers

    def check(self, size: int, headers: int) -> None:
        """Check both limits. Raises Refusal 431."""
        if size > self.max_bytes:
            message = f"The request's head and trailers are larger than {self.max_bytes} bytes."
            raise Refusal(431, "head_too_large", message)
        if headers > self.max_headers:
            raise Refusal(431, "too_many_headers", f"The request has more than {self.max_headers} headers.")


class ChunkedBody:
    """Track the end of a chunked body that arrives in pieces."""

    __slots__ = ("_chunks", "_headers", "_limits", "_line", "_size", "_skip", "_tail")

    def __init__(self, limits: HeadLimits, size: int, headers: int) -> None:
        """Start with the bytes (`size`) and lines (`headers`) of the head; trailers and extensions are added."""
        self._limits = limits
        self._size = size
        self._headers = headers
        self._chunks = 0
        self._skip = 0  # remaining bytes of a chunk's data and line end
        self._line = b""  # an incomplete size line of a chunk
        self._tail: bytes | None = None  # the last bytes of the trailers; None before the last chunk

    def end_in(self, data: bytes, start: int) -> int:
        """Return the position in `data` after the body's last byte, or after the chunks of one turn.

        Raises Refusal for too many bytes, lines or chunks.
        """
        size, last = len(data), self._chunks + CHUNKS_PER_TURN
        while start < size and self._tail is None and self._chunks < last:
            if self._skip:
                step = min(self._skip, size - start)
                self._skip -= step
                start += step
            else:
                start = self._after_line(data, start)
        return start if start == size or self._tail is None else self._after_trailers(data, start)

    def _after_line(self, data: bytes, start: int) -> int:
        """Read the size line of a chunk; return the position after it."""
        if self._line:
            line = self._line + data[start : start + MAX_CHUNK_LINE + 2]
            start -= len(self._line)
        else:
            line = data[start : start + MAX_CHUNK_LINE + 2]
        end = line.find(LINE_END)
        if end < 0:
            if len(line) > MAX_CHUNK_LINE:
                raise Refusal(431, "head_too_large", f"A chunk's size line is longer than {MAX_CHUNK_LINE} bytes.")
            self._line = line
            return len(data)
        self._line = b""
        digits = HEX.match(line)
        if digits is None:  # the parser refuses it
            return len(data)
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            message = f"The body came in more than {MAX_CHUNKS} chunks; send fewer and larger ones."
            raise Refusal(413, "too_many_chunks", message)
        self._add(end - digits.end(), 0)
        if length := int(digits[0], 16):
            self._skip = length + len(LINE_END)
        else:
            self._tail = LINE_END
        return start + end + len(LINE_END)

    def _after_trailers(self, data: bytes, start: int) -> int:
        """Find the empty line after the trailers, which may include the last chunk's line end; return the position."""
        assert self._tail is not None
        known = len(self._tail)
        trailers = self._tail + data[start : start + self._limits.max_bytes + len(HEAD_END)]
        end = trailers.find(HEAD_END)
        new = trailers[known:] if end < 0 else trailers[known : end + len(HEAD_END)]
        self._add(len(new), new.count(b"\n") - (end >= 0))
        self._tail = trailers[-3:]
        return len(data) if end < 0 else start + end + len(HEAD_END) - known

    def _add(self, size: int, headers: int) -> None:
        self._size += size
        self._headers += headers
        self._limits.check(self._size, self._headers)


def check_beginning(head: bytearray) -> None:
    """Check the beginning of a head, so that an invalid one is refused early. Raises HttpParserError."""
    if not METHOD.match(head) or head.count(b"\n") != head.count(LINE_END):
        raise HttpParserError("this is no head of HTTP/1.1")


def without_upgrade(method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a head without its offer to upgrade the protocol, which a server may ignore (RFC 9110, section 7.8)."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    for name, value in headers:
        if name in HOP_BY_HOP:
            continue
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(option for option in options if option.lower() not in HOP_BY_HOP)
        lines.append(b"%b: %b" % (name, value))
    return LINE_END.join(lines) + HEAD_END
