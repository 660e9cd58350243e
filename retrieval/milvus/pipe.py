"""Searches through inherited sockets, for processes that may not open connections: the other end is `host.py`.

Each socket carries one question at a time, so as many threads can search as there are sockets. A frame is its length
and its payload; both ends are this package.

Suffixes: Q queries, K results, W width.
"""

import json
import socket
import struct
from collections.abc import Sequence
from queue import LifoQueue
from typing import Any

import numpy as np

from retrieval.errors import BundleError, IndexUnavailable
from retrieval.search.indexes import Rows, Vectors

LENGTH = struct.Struct("<IQ")  # bytes of the JSON head, bytes of the arrays
MAX_HEAD, MAX_BODY = 1 << 16, 1 << 30
CONNECTIONS = 8  # sockets of one engine


class PipedSource:
    """Searches a collection through the sockets of a host process."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        """Use these open sockets."""
        self._sockets: LifoQueue[socket.socket] = LifoQueue()
        for descriptor in descriptors:
            self._sockets.put(socket.socket(fileno=descriptor))
        self._count = len(descriptors)

    def search(self, query_QW: Vectors, k: int, ef: int) -> tuple[Rows, Vectors]:
        """Search as `CandidateSource` describes."""
        head = {"queries": len(query_QW), "width": query_QW.shape[1], "k": k, "ef": ef}
        body = self._ask(head, np.ascontiguousarray(query_QW, np.float32).tobytes())[1]
        count = len(query_QW) * k
        if len(body) != 12 * count:
            raise IndexUnavailable(f"the process that searches Milvus sent {len(body)} bytes instead of {12 * count}.")
        rows = np.frombuffer(body, np.int64, count).reshape(-1, k)
        return rows, np.frombuffer(body, np.float32, count, 8 * count).reshape(-1, k)

    def count(self) -> int:
        """Count as `CandidateSource` describes."""
        return int(self._ask({"count": True})[0]["count"])

    def close(self) -> None:
        """Close the sockets; the host then ends."""
        for _ in range(self._count):
            self._sockets.get().close()
        self._count = 0

    def _ask(self, head: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        pipe = self._sockets.get()
        try:
            answer = None
            try:
                send_frame(pipe, head, body)
                answer = read_frame(pipe)
            except (BrokenPipeError, ConnectionResetError):
                answer = None
        finally:
            self._sockets.put(pipe)
        if answer is None:  # not an Exception: this process ends, and the service starts both processes again
            raise SystemExit("the process that searches Milvus has ended")
        if "unavailable" in answer[0]:
            raise IndexUnavailable(str(answer[0]["unavailable"]))
        if "refused" in answer[0]:
            raise BundleError(str(answer[0]["refused"]))
        return answer


def send_frame(pipe: socket.socket, head: dict[str, Any], body: bytes = b"") -> None:
    """Send one frame."""
    written = json.dumps(head).encode()
    pipe.sendall(LENGTH.pack(len(written), len(body)) + written + body)


def read_frame(pipe: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; None at the end of the stream. Raises ValueError for a frame that is too long."""
    lengths = _read(pipe, LENGTH.size)
    if len(lengths) < LENGTH.size:
        return None
    head_bytes, body_bytes = LENGTH.unpack(lengths)
    if head_bytes > MAX_HEAD or body_bytes > MAX_BODY:
        raise ValueError(f"a frame of {head_bytes} and {body_bytes} bytes is too long")
    head, body = _read(pipe, head_bytes), _read(pipe, body_bytes)
    return (json.loads(head), body) if len(head) == head_bytes and len(body) == body_bytes else None


def _read(pipe: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size and (block := pipe.recv(size - len(received))):
        received += block
    return bytes(received)
