"""Replacements for uvicorn's transport of a response and its flow control."""

from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl

STATUS_BEGINNING = b"HTTP/1.1 "  # of every response


class RespondingConnection(Protocol):
    """The connection that a response is written to."""

    cycle: Any  # uvicorn's request-response cycle
    transport: Any

    @property
    def request_is_arriving(self) -> bool:
        """Whether a request is partly received."""

    def write_response(self, data: bytes) -> None:
        """Write a part of the response."""

    def linger(self) -> None:
        """Stop sending and discard further input before the close."""


class ResponseTransport:
    """Transport of one response; sends the head together with the first part of the body.

    uvicorn writes the head alone. The second system call and the second packet cost about a tenth of the time that
    the front spends on a request (docs/decisions/0075).
    """

    __slots__ = ("_connection", "_head")

    def __init__(self, connection: RespondingConnection) -> None:
        self._connection = connection
        self._head: bytes | None = None  # None before uvicorn has written it; empty once it is sent

    def write(self, data: bytes) -> None:
        """Write a part of the response."""
        if self._head:
            data, self._head = self._head + data, b""
        elif self._head is None and self._connection.cycle.response_started:  # else it is 100 Continue
            self._head = data
            return
        self._connection.write_response(data)

    def flush(self) -> None:
        """Send a head that no body follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close the connection; first discard the rest of a request that is still arriving."""
        self.flush()
        if self._connection.request_is_arriving:
            self._connection.linger()
        else:
            self._connection.transport.close()

    def is_closing(self) -> bool:
        """Return whether nothing more can be written."""
        return bool(self._connection.transport.is_closing())


class ReadControl(FlowControl):
    """uvicorn's flow control, which does not resume reading while the buffer is full."""

    buffer_is_full = False

    def resume_reading(self) -> None:
        """Resume reading, unless the buffer is full."""
        if self.read_paused and not self.buffer_is_full:
            super().resume_reading()
