"""A light HTTP/1.1 client: keep-alive connections on bare asyncio protocols, answers told by their head alone."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from loadtest.alarm import now
from loadtest.target import Target

TIMED_OUT, LOST, NO_HTTP, UNFINISHED = "time-out", "connection lost", "not HTTP", "unfinished"
LONGEST_IDLE = 4.0  # seconds; many servers hang up after five, and a request just then would be lost


class Ended(NamedTuple):
    """How a request ended: `kind` is the status, or why there is none; times are seconds of `now()`."""

    kind: str
    due: float
    done: float
    timing: bytes
    bundle: bytes


class Exchange:
    """One request on its way."""

    __slots__ = ("connection", "due", "message")

    def __init__(self, message: bytes, due: float) -> None:
        self.message = message
        self.due = due
        self.connection: Connection | None = None


class Connection(asyncio.Protocol):
    """One keep-alive connection; httptools calls the `on_` methods."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._timing = self._bundle = b""
        self.exchange: Exchange | None = None
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass

    def ask(self, exchange: Exchange) -> None:
        """Send a request; the connection must have none under way."""
        exchange.connection, self.exchange = self, exchange
        self._timing = self._bundle = b""
        if self._transport:
            self._transport.write(exchange.message)

    def drop(self) -> None:
        """Close without a word."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._client.failed(self, NO_HTTP)
            self.drop()

    def connection_lost(self, _: Exception | None) -> None:
        self._client.failed(self, LOST)
        self._client.closed(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 13 and name.lower() == b"server-timing":
            self._timing = value
        elif len(name) == 8 and name.lower() == b"x-bundle":
            self._bundle = value

    def on_message_complete(self) -> None:
        self._client.answered(
            self, str(self._parser.get_status_code()), self._timing, self._bundle, self._parser.should_keep_alive()
        )


class Client:
    """Sends each request at once, on an idle connection or a new one; at `most` connections requests wait for one.

    `ended` hears of every request once. Requests without an answer `timeout` seconds after they were due have failed.
    """

    def __init__(self, target: Target, most: int, timeout: float, ended: Callable[[Ended], None]) -> None:
        self._target = target
        self._most = most
        self._timeout = timeout
        self._ended = ended
        self._idle: list[Connection] = []  # the last one in is the first one out, so few are used when few are needed
        self._waiting: deque[Exchange] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._open = 0
        self._closing = False
        self.in_flight: dict[Exchange, None] = {}  # in the order in which they were due
        self.opened = 0
        self.waited = 0

    async def warm_up(self, connections: int) -> None:
        """Open so many connections beforehand."""
        for _ in range(min(connections, self._most)):
            self._connect(None)
        await asyncio.gather(*self._opening)

    def ask(self, message: bytes, due: float) -> None:
        """Send a request that is due now."""
        exchange = Exchange(message, due)
        self.in_flight[exchange] = None
        if self._idle:
            self._idle.pop().ask(exchange)
        elif self._open < self._most:
            self._connect(exchange)
        else:
            self.waited += 1
            self._waiting.append(exchange)

    def expire(self) -> None:
        """Give up requests that have waited too long, and hang up before a server does."""
        present = now()
        while self.in_flight and (exchange := next(iter(self.in_flight))).due < present - self._timeout:
            self._give_up(exchange, TIMED_OUT)
        while self._idle and self._idle[0].idle_since < present - LONGEST_IDLE:
            self._idle.pop(0).drop()

    async def close(self) -> None:
        """Give up what is unfinished, and hang up."""
        self._closing = True
        for exchange in list(self.in_flight):
            self._give_up(exchange, UNFINISHED)
        for connection in self._idle:
            connection.drop()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def answered(self, connection: Connection, status: str, timing: bytes, bundle: bytes, keep: bool) -> None:
        """A connection has read an answer; it takes the next request, if it may be kept."""
        exchange, connection.exchange = connection.exchange, None
        if exchange is None:  # an answer that nobody asked for
            connection.drop()
            return
        self._settle(exchange, status, timing, bundle)
        if keep:
            self._free(connection)
        else:
            connection.drop()

    def failed(self, connection: Connection, kind: str) -> None:
        """A connection cannot answer its request."""
        exchange, connection.exchange = connection.exchange, None
        if exchange:
            self._settle(exchange, kind)

    def closed(self, connection: Connection) -> None:
        """A connection has ended: another may take its place."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._replace()

    def _connect(self, exchange: Exchange | None) -> None:
        self._open += 1
        task = asyncio.get_running_loop().create_task(self._opened(exchange))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _opened(self, exchange: Exchange | None) -> None:
        target = self._target
        try:
            async with asyncio.timeout(self._timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self),
                    target.address,
                    target.port,
                    ssl=target.tls,
                    server_hostname=target.host if target.tls else None,
                )
        except OSError as error:  # a TimeoutError is one
            self._open -= 1
            if exchange and exchange in self.in_flight:
                self._settle(exchange, f"no connection ({error.strerror or 'time-out'})")
            self._replace()
            return
        self.opened += 1
        if exchange and exchange in self.in_flight:
            connection.ask(exchange)
        else:
            self._free(connection)

    def _free(self, connection: Connection) -> None:
        if self._closing:
            connection.drop()
        elif self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            connection.idle_since = now()
            self._idle.append(connection)

    def _replace(self) -> None:
        if self._waiting and not self._closing and self._open < self._most:
            self._connect(self._waiting.popleft())

    def _give_up(self, exchange: Exchange, kind: str) -> None:
        self._settle(exchange, kind)
        if connection := exchange.connection:
            connection.exchange = None
            connection.drop()
        elif exchange in self._waiting:
            self._waiting.remove(exchange)

    def _settle(self, exchange: Exchange, kind: str, timing: bytes = b"", bundle: bytes = b"") -> None:
        del self.in_flight[exchange]
        self._ended(Ended(kind, exchange.due, now(), timing, bundle))
