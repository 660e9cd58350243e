"""Replacements for uvicorn's transport of a response and its flow control."""

from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from service.connection import Connection

STATUS_BEGINNING = b"HTTP/1.1 "  # of every response


class ResponseTransport:
    """Transport of a response whose request is still arriving or whose client may have disconnected."""

    __slots__ = ("_connection",)

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        """Write a part of the response."""
        self._connection.write_response(data)

    def close(self) -> None:
        """Close the connection; first discard the rest of a request that is still arriving."""
        if self._connection.request_is_arriving:
            self._connection.linger()
        else:
            self._connection.transport.close()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._connection.transport.is_closing()


class ReadControl(FlowControl):
    """uvicorn's flow control, which does not resume reading while enough is buffered."""

    enough = False

    def resume_reading(self) -> None:
        """Resume reading, unless enough is buffered."""
        if self.read_paused and not self.enough:
            super().resume_reading()
