"""Connections that cost something and bring nothing: bounded in number, in patience and in the size of a head.

uvicorn bounds how long an answered connection may idle, and nothing else. Here every connection is looked at once a
second, so that a request in time pays three assignments and no timer. What comes while the queue is full is answered
here as well, before anything is made of it: under three times the load that can be answered, refusing must cost a
fraction of answering, or there is no time left for either.
"""

import asyncio
import http
import logging
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import errors
from service.body_check import UNCHECKED_BYTES
from service.errors import Refusal
from service.exchange import Exchange, given_or_new_id, new_id
from service.metrics import Metrics
from service.predicting import PATH
from service.settings import Settings

LOG = logging.getLogger("diptych")
PATH_BYTES = PATH.encode()
SOON = "as many texts as can be answered soon"
CLOSE = b"connection: close\r\n\r\n"
LONGEST_PAUSE = 1.0  # seconds between two looks
LOOKS = 4  # in the shortest patience
AT_ONCE = 8  # connections: cutting one off takes as long as an answer, and thousands may be overdue together


class Connections:
    """Every open connection of one service."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        full: Callable[[], bool],
        turns_away: Callable[[Exchange], bool],
    ) -> None:
        """`full` says whether the queue has no room; `turns_away`, whether a request's caller then has its share."""
        self.settings = settings
        self.metrics = metrics
        # a line in the log, and the headers without which a page of others sees no answer, are for what was heard
        self.full = _never if settings.log_requests == "all" or settings.origins else full
        self.turns_away = turns_away
        # made beforehand, one for each Retry-After, which are given in turn
        refusals = [errors.overloaded(SOON, seconds) for seconds in range(1, errors.longest_retry() + 1)]
        self.full_heads = cycle([_head(refusal) for refusal in refusals])
        self.full_body = bytes(refusals[0].response().body)
        self.full_count = metrics.rejections.labels("queue_full")
        self._open: dict[Connection, None] = {}  # in the order of their opening
        self._unasked: dict[Connection, None] = {}  # those of them that have not sent a whole request yet
        metrics.connections.set_function(lambda: len(self._open))

    @property
    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """What uvicorn makes for each connection."""
        return partial(Connection, self)

    def opened(self, connection: "Connection") -> Refusal | None:
        """Take a connection in; in a full house an idle one makes room for it. The refusal when none is idle."""
        if len(self._open) >= self.settings.max_connections:
            victim = next(iter(self._unasked), None) or next((one for one in self._open if one.idle), None)
            if victim is None:
                self.metrics.rejections.labels("too_many_connections").inc()
                message = "The service has no room for another connection. Try again in a second."
                return Refusal(503, "too_many_connections", message, errors.retry_after())
            self.metrics.rejections.labels("made_room").inc()
            self.closed(victim)
            victim.transport.abort()
        self._open[connection] = self._unasked[connection] = None
        return None

    def asked(self, connection: "Connection") -> None:
        """It has sent a whole request: it is somebody's who means it."""
        self._unasked.pop(connection, None)

    def closed(self, connection: "Connection") -> None:
        self._open.pop(connection, None)
        self._unasked.pop(connection, None)

    async def watch(self) -> None:
        """Look at every connection, again and again: a few at a time, spread over the pause."""
        settings = self.settings
        shortest = min(settings.receive_seconds, settings.send_seconds, settings.keep_alive_seconds)
        pause = min(LONGEST_PAUSE, shortest / LOOKS)
        loop = asyncio.get_running_loop()
        while True:
            everyone = list(self._open)
            starts = range(0, max(len(everyone), 1), AT_ONCE)
            for start in starts:
                await asyncio.sleep(pause / len(starts))
                now = loop.time()
                for connection in everyone[start : start + AT_ONCE]:
                    if connection in self._open:
                        self._look(connection, now)

    @staticmethod
    def _look(connection: "Connection", now: float) -> None:
        try:
            connection.look(now)
        except Exception:  # else one connection's fault would leave all the others unwatched
            LOG.exception("a connection was cut off, since it could not be judged")
            connection.transport.abort()


class Connection(HttpToolsProtocol):
    """uvicorn's connection with an eye on what it is waiting for."""

    # as attributes of a dictionary, beside uvicorn's 27, they cost 1 kB for each connection (docs/decisions/0058)
    __slots__ = ("_asked", "_asking", "_head_bytes", "_house", "_in_head", "_opened", "_stuck", "_turned_away")

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._house = connections
        self._opened = self.loop.time()
        self._asking = 0.0  # since when a request has been coming in; 0: none is
        self._stuck = 0.0  # since when the client has not been reading its answer; 0: it is
        self._in_head = False
        self._asked = False
        self._turned_away = False  # what is coming in will be answered without being heard
        self._head_bytes = 0

    @property
    def idle(self) -> bool:
        return not self._asking and self._free

    @property
    def _free(self) -> bool:
        """Whether no earlier request of it is unanswered."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def look(self, now: float) -> None:
        """Close the connection when what it waits for is overdue."""
        settings = self._house.settings
        if self._stuck and now - self._stuck > settings.send_seconds:
            self._house.metrics.rejections.labels("slow_reader").inc()
            self.transport.abort()
        elif self._asking and now - self._asking > settings.receive_seconds:
            self._overdue(now)
        elif not self._asked and not self._asking and now - self._opened > settings.keep_alive_seconds:
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if refusal := self._house.opened(self):
            self._end_with(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._house.closed(self)
        if self.cycle is not None and (exchange := cast(Exchange | None, self.cycle.scope.get("exchange"))):
            exchange.left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # the parser may have been left in the middle of what was refused
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._house.settings.max_head_bytes:
                self._house.metrics.rejections.labels("head_too_large").inc()
                limit = self._house.settings.max_head_bytes
                self._end_with(Refusal(431, "head_too_large", f"The request's head is larger than {limit} bytes."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._asking = self.loop.time()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        waits = self.expect_100_continue  # with its body, which is therefore not on its way
        if self.url == PATH_BYTES and self._free and not waits and self.parser.get_method() == b"POST":
            self._turned_away = self._house.full() and self._is_small() and self._house.turns_away(self._unheard())
        if not self._turned_away:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._turned_away:
            self._turn_away()
        else:
            super().on_message_complete()
        self._asking = 0.0
        self._forget()
        if not self._asked:
            self._asked = True
            self._house.asked(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._forget()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck = 0.0

    def send_400_response(self, msg: str) -> None:
        """uvicorn's own answer to what is not HTTP, in the shape of all the others."""
        self._house.metrics.rejections.labels("not_http").inc()
        self._end_with(Refusal(400, "not_http", "This is not a request in HTTP/1.1."))

    def _is_small(self) -> bool:
        """Return whether the body is so small that refusing it costs next to nothing, however often it comes."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return length.isdigit() and int(length) <= UNCHECKED_BYTES

    def _unheard(self) -> Exchange:
        """Return as much of a request as its caller is known by."""
        return Exchange({"path": PATH, "headers": self.headers, "client": self.client}, frozenset())

    def _forget(self) -> None:
        """Keep nothing of what was asked on a connection that idles: it is 9 kB, and there may be thousands."""
        if self.idle:
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as before its first request

    def _turn_away(self) -> None:
        """Answer 429 to what was never heard; all that is kept of it is a count."""
        self._turned_away = False
        house, keep = self._house, self.parser.should_keep_alive()
        house.full_count.inc()
        house.metrics.answered(PATH, 429)
        about = _about(given_or_new_id(dict(self.headers)), self.loop.time() - self._asking)
        self.transport.write(next(house.full_heads) + about + (b"\r\n" if keep else CLOSE) + house.full_body)
        if keep:
            self.on_response_complete()  # uvicorn's: from now on it idles
        else:
            self.transport.close()

    def _overdue(self, now: float) -> None:
        if self.pipeline:  # it was we who stopped reading
            self._asking = now
            return
        self._house.metrics.rejections.labels("slow_sender").inc()
        seconds = self._house.settings.receive_seconds
        self._end_with(Refusal(408, "too_slow", f"The request was not complete within {seconds:g} s."))

    def _end_with(self, refusal: Refusal) -> None:
        """Answer without the application, which may not have heard of the request yet, and close."""
        cycle = self.cycle
        unheard = cycle is None or cycle.response_complete
        waiting = self._asking and not self._in_head and not (unheard or cycle.response_started)
        if unheard or waiting:
            self.transport.write(_plain(refusal, self.loop.time() - (self._asking or self._opened)))
        if unheard:  # else the application's layer counts the request as one whose client has gone
            self._house.metrics.answered("other", refusal.status)
        self.transport.close()


def _never() -> bool:
    return False


def _plain(refusal: Refusal, seconds: float) -> bytes:
    return _head(refusal) + _about(new_id(), seconds) + CLOSE + bytes(refusal.response().body)


def _head(refusal: Refusal) -> bytes:
    phrase = http.HTTPStatus(refusal.status).phrase
    lines = [f"HTTP/1.1 {refusal.status} {phrase}".encode()]
    lines += [b"%b: %b" % header for header in refusal.response().raw_headers]
    return b"".join(line + b"\r\n" for line in lines)


def _about(request_id: bytes, seconds: float) -> bytes:
    return b"x-request-id: %b\r\nserver-timing: total;dur=%.3f\r\n" % (request_id, seconds * 1e3)
