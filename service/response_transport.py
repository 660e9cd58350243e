"""What a response is written to, and what reading is paused with, where uvicorn's own would do too much."""

from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from service.connection import Connection

STATUS_BEGINNING = b"HTTP/1.1 "  # of every answer


class ResponseTransport:
    """The transport of a response whose request is still coming in, or whose client may have gone."""

    __slots__ = ("_connection",)

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        """Write a part of the answer."""
        self._connection.write_response(data)

    def close(self) -> None:
        """End the connection, after what is still coming in where there is any."""
        if self._connection.request_is_arriving:
            self._connection.linger()
        else:
            self._connection.transport.close()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._connection.transport.is_closing()


class ReadControl(FlowControl):
    """uvicorn's flow control, which does not resume reading while enough has been read ahead."""

    enough = False

    def resume_reading(self) -> None:
        """Read on, unless enough has been read."""
        if self.read_paused and not self.enough:
            super().resume_reading()
