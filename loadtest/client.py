"""An HTTP/1.1 client with keep-alive connections that reads only the heads of answers.

Hand-written: on httptools it needs 14 µs of CPU per request; aiohttp needs 131, httpx 1,600 (decision 0043).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from loadtest.target import Target
from loadtest.timer import now

TIMED_OUT, LOST, NOT_HTTP, UNFINISHED = "timeout", "connection lost", "not HTTP", "unfinished"
MAX_IDLE_SECONDS = 4.0  # many servers close idle connections after five seconds; a request sent just then is lost


class RequestOutcome(NamedTuple):
    """The end of one request: `kind` is the status, or why there is none; times are seconds of `now()`."""

    kind: str
    due: float
    done: float
    server_timing: bytes
    bundle: bytes


class ScheduledRequest:
    """One request in flight."""

    __slots__ = ("connection", "due", "message")

    def __init__(self, message: bytes, due: float) -> None:
        self.message = message
        self.due = due
        self.connection: KeepAliveConnection | None = None


class KeepAliveConnection(asyncio.Protocol):
    """One connection with at most one request in flight; httptools calls the `on_` methods."""

    def __init__(self, client: "LoadClient") -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._server_timing = self._bundle = b""
        self.request: ScheduledRequest | None = None
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass

    def send(self, request: ScheduledRequest) -> None:
        """Send a request; no other may be in flight on this connection."""
        request.connection, self.request = self, request
        self._server_timing = self._bundle = b""
        if self._transport:
            self._transport.write(request.message)

    def close(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._client.on_failure(self, NOT_HTTP)
            self.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._client.on_failure(self, LOST)
        self._client.on_closed(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 13 and name.lower() == b"server-timing":
            self._server_timing = value
        elif len(name) == 8 and name.lower() == b"x-bundle":
            self._bundle = value

    def on_message_complete(self) -> None:
        status = str(self._parser.get_status_code())
        self._client.on_answer(self, status, self._server_timing, self._bundle, self._parser.should_keep_alive())


class LoadClient:
    """Send each request at once, on an idle or a new connection; at `max_connections`, requests wait for one.

    Calls `on_outcome` once per request. A request without an answer `timeout` seconds after it was due has failed.
    """

    def __init__(
        self, target: Target, max_connections: int, timeout: float, on_outcome: Callable[[RequestOutcome], None]
    ) -> None:
        self._target = target
        self._max_connections = max_connections
        self._timeout = timeout
        self._on_outcome = on_outcome
        self._idle: list[KeepAliveConnection] = []  # a stack, so that a low rate uses few connections
        self._waiting: deque[ScheduledRequest] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._open = 0
        self._closing = False
        self.in_flight: dict[ScheduledRequest, None] = {}  # ordered by due time
        self.opened = 0
        self.waited = 0

    async def warm_up(self, connections: int) -> None:
        """Open connections before the run."""
        for _ in range(min(connections, self._max_connections)):
            self._connect(None)
        await asyncio.gather(*self._opening)

    def send(self, message: bytes, due: float) -> None:
        """Send a request that is due now."""
        request = ScheduledRequest(message, due)
        self.in_flight[request] = None
        if self._idle:
            self._idle.pop().send(request)
        elif self._open < self._max_connections:
            self._connect(request)
        else:
            self.waited += 1
            self._waiting.append(request)

    def expire(self) -> None:
        """Give up requests after the timeout, and close idle connections before the server does."""
        present = now()
        while self.in_flight and (request := next(iter(self.in_flight))).due < present - self._timeout:
            self._give_up(request, TIMED_OUT)
        while self._idle and self._idle[0].idle_since < present - MAX_IDLE_SECONDS:
            self._idle.pop(0).close()

    async def close(self) -> None:
        """Give up unfinished requests and close all connections."""
        self._closing = True
        for request in list(self.in_flight):
            self._give_up(request, UNFINISHED)
        for connection in self._idle:
            connection.close()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def on_answer(
        self, connection: KeepAliveConnection, status: str, server_timing: bytes, bundle: bytes, keep_alive: bool
    ) -> None:
        """Record an answer; the connection takes the next request if it stays open."""
        request, connection.request = connection.request, None
        if request is None:  # an answer without a request
            connection.close()
            return
        self._finish(request, status, server_timing, bundle)
        if keep_alive:
            self._reuse(connection)
        else:
            connection.close()

    def on_failure(self, connection: KeepAliveConnection, kind: str) -> None:
        """Record that a connection cannot answer its request."""
        request, connection.request = connection.request, None
        if request:
            self._finish(request, kind)

    def on_closed(self, connection: KeepAliveConnection) -> None:
        """Remove a closed connection; open another one if requests wait."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._connect_for_waiting()

    def _connect(self, request: ScheduledRequest | None) -> None:
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._open_connection(request))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_connection(self, request: ScheduledRequest | None) -> None:
        target = self._target
        try:
            async with asyncio.timeout(self._timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: KeepAliveConnection(self), target.address, target.port,
                    ssl=target.tls, server_hostname=target.host if target.tls else None,
                )  # fmt: skip
        except OSError as error:  # includes TimeoutError
            self._open -= 1
            if request and request in self.in_flight:
                self._finish(request, f"no connection ({error.strerror or TIMED_OUT})")
            self._connect_for_waiting()
            return
        self.opened += 1
        if request and request in self.in_flight:
            connection.send(request)
        else:
            self._reuse(connection)

    def _reuse(self, connection: KeepAliveConnection) -> None:
        if self._closing:
            connection.close()
        elif self._waiting:
            connection.send(self._waiting.popleft())
        else:
            connection.idle_since = now()
            self._idle.append(connection)

    def _connect_for_waiting(self) -> None:
        if self._waiting and not self._closing and self._open < self._max_connections:
            self._connect(self._waiting.popleft())

    def _give_up(self, request: ScheduledRequest, kind: str) -> None:
        self._finish(request, kind)
        if connection := request.connection:
            connection.request = None
            connection.close()
        elif request in self._waiting:
            self._waiting.remove(request)

    def _finish(self, request: ScheduledRequest, kind: str, server_timing: bytes = b"", bundle: bytes = b"") -> None:
        del self.in_flight[request]
        self._on_outcome(RequestOutcome(kind, request.due, now(), server_timing, bundle))
