"""Replace uvicorn's transport of a response and its flow control, for one connection."""

from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from service.connection import Connection

STATUS_BEGINNING = b"HTTP/1.1 "  # of every answer


class ResponseTransport:
    """Transport of one response: writes its head together with the first part of its body.

    uvicorn writes the head by itself. The second system call, and the second packet that the client reads, cost a
    fifth of all that the service spends on a request (docs/decisions/0042).
    """

    __slots__ = ("_connection", "_head")

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._head: bytes | None = None  # not written yet by uvicorn; empty: sent

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
        """End the connection, after the rest of the request where it is still arriving."""
        self.flush()
        if self._connection.request_is_arriving:
            self._connection.linger()
        else:
            self._connection.transport.close()

    def is_closing(self) -> bool:
        """Return whether nothing more can be written."""
        return self._connection.transport.is_closing()


class ReadControl(FlowControl):
    """uvicorn's flow control, which does not resume reading while enough has been read ahead."""

    enough = False

    def resume_reading(self) -> None:
        """Read on, unless enough has been read."""
        if self.read_paused and not self.enough:
            super().resume_reading()
