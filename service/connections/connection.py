"""Limit one client connection: what it may send, hold and leave unread, and for how long.

uvicorn limits only the idle time of a connection. Here, unanswered bytes count against a shared memory budget, and
pipelined requests wait as bytes for their turn. The pool checks every connection once per second, so that a request
in time sets a few attributes and no timer.
"""

import select
from typing import TYPE_CHECKING, Any, cast

from service import errors
from service.connections.direct_responses import CLOSE, answer_about, answer_without_application
from service.connections.memory_budget import PER_HEADER, PER_READ, SPARE
from service.connections.request_reader import RequestReader
from service.connections.response_transport import STATUS_BEGINNING, ReadControl, ResponseTransport
from service.errors import Refusal
from service.http.body_limits import UNCHECKED_BYTES
from service.http.middleware import Exchange, given_or_new_id
from service.http.predict import PATH

if TYPE_CHECKING:
    from service.connections.pool import Connections

PATH_BYTES = PATH.encode()
MAX_AHEAD = 16_384  # bytes of pipelined requests that are buffered
MAX_UNSENT = 8192  # bytes of an unread response that are not counted
MAX_DISCARDED = 16  # times the largest body, discarded after a response: clients that still send would not read it
LINGER_SECONDS = 2.0  # time for the client to read a refusal before the connection is closed
PROBE_SECONDS = 0.05  # time for a disconnected peer to reset the connection
ENDED = select.POLLERR | select.POLLHUP


class Connection(RequestReader):
    """uvicorn's connection with limits on memory, time and pipelining."""

    # in a dictionary, beside uvicorn's 27 attributes, they would take 1 kB per connection (docs/decisions/0058)
    __slots__ = (
        "_ahead", "_answered_once", "_busy", "_closing", "_discarded", "_half_closed", "_head_held", "_held",
        "_opened", "_pool", "_status_begun", "_stuck", "_turned_away", "_unsent", "held_since",
    )  # fmt: skip

    def __init__(self, pool: "Connections", **given: Any) -> None:
        super().__init__(pool.head_limits, **given)
        self._pool = pool
        self._opened = self.loop.time()
        self._ahead: bytearray | None = None  # buffered pipelined requests
        self._busy = False  # a whole request is being answered
        self._turned_away = False  # the arriving request will be refused without the application
        self._head_held = False  # the headers of the request that is arriving are in the memory budget
        self._answered_once = False  # it has sent a whole request
        self._half_closed = False  # the client will send no more
        self._status_begun = False  # the first bytes of the next response have been sent
        self._stuck = 0.0  # time since the client stopped reading its response; 0: it reads
        self._closing = 0.0  # when it was first seen closing
        self._discarded = 0  # discarded bytes
        self._held = self._unsent = 0  # bytes in the memory budget: received and unread by the client
        self.held_since = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is arriving, waiting or being answered."""
        return not self._arriving and not self._ahead and self._free

    @property
    def held(self) -> int:
        """Bytes that it holds in the memory budget."""
        return self._held + self._unsent

    @property
    def stalled_since(self) -> float:
        """Loop time since it has been sending one request or not reading; infinite when it does neither."""
        return min(self._arriving or float("inf"), self._stuck or float("inf"), self._lingering or float("inf"))

    @property
    def request_is_arriving(self) -> bool:
        """Whether a request is partly received."""
        return bool(self._arriving)

    @property
    def _free(self) -> bool:
        """Whether all of its requests are answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow: ReadControl = ReadControl(transport)
        transport.set_write_buffer_limits(MAX_UNSENT)
        if refusal := self._pool.opened(self):
            self._answer_refusal(refusal)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.closed(self)
        self._release_all()
        self._head = self._ahead = None
        if self.cycle is not None and (exchange := cast(Exchange | None, self.cycle.scope.get("exchange"))):
            exchange.left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering or self.transport.is_closing():
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        if self._busy or self._ahead:
            self._keep_ahead(data, 0)
        else:
            self._receive(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Return whether to keep the half-closed connection for its response."""
        if self._lingering or not (self._busy or self._ahead):
            return False
        self._half_closed = True
        self._probe_peer()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.time()
        if not self._held:
            self.held_since = self._stuck
        self._unsent = self.transport.get_write_buffer_size()
        if self._pool.memory.add(self._unsent):
            self.loop.call_soon(self._relieve)  # later: the transport is in the middle of a write

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck = 0.0
        self._pool.memory.used -= self._unsent
        self._unsent = 0
        if self._ahead and not self._busy:
            self._pool.take_turn(self)

    def take_turn(self) -> None:
        """Read the next pipelined request."""
        if self.flow.write_paused or self._lingering or self.transport.is_closing():
            return  # the client must first read its response; then it gets another turn
        data, self._ahead = self._ahead, None
        if data is None:
            return
        self._release(len(data))
        self._unset_keepalive_if_required()
        self.flow.enough = False
        self._receive(bytes(data))
        self.flow.resume_reading()
        if self._half_closed and not (self._busy or self._ahead):
            self.transport.close()

    def _keep_ahead(self, data: bytes, start: int) -> None:
        """Buffer pipelined bytes; pause reading when there are enough."""
        if self._ahead is None:
            self._ahead = bytearray()
        self._ahead += data[start:]
        if len(self._ahead) > MAX_AHEAD:
            self.flow.enough = True
            self.flow.pause_reading()
        if not self._busy:
            self._pool.take_turn(self)
        self._hold(len(data) - start)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._upgrade = True
            return
        waits = self.expect_100_continue  # the client holds its body back
        if self.url == PATH_BYTES and not waits and self.parser.get_method() == b"POST":
            self._turned_away = self._turns_away()
        if self._chunked or self._length:
            self._body = self._length
        if not self._turned_away:
            super().on_headers_complete()
            self.cycle.transport = cast(Any, ResponseTransport(self))
            self._started, self._head_held = True, False

    def on_body(self, body: bytes) -> None:
        if not self._turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        self._done, self._body = True, None
        if self._turned_away:
            self._turn_away()
        else:
            super().on_message_complete()
            self._busy = self._started = not self.cycle.response_complete
        self._arriving = 0.0
        self._discarded = 0
        if self._held:  # the application reads the body before anything else happens
            self.loop.call_soon(self._release_read)
        if not self._busy:
            self._forget()
        if not self._answered_once:
            self._answered_once = True
            self._pool.asked(self)

    def on_response_complete(self) -> None:
        if self.cycle is not None:
            cast(ResponseTransport, self.cycle.transport).flush()
        super().on_response_complete()
        self._busy = False
        if self._arriving:
            self._release(self._held - (len(self._ahead) if self._ahead else 0))  # the rest is thrown away
        else:
            self._started = False
            if self._held:
                self._release_read()
        if self._ahead:
            self._pool.take_turn(self)
        elif self._half_closed:
            self.transport.close()
        self._forget()

    def look(self, now: float) -> bool:
        """Close the connection when a time limit has passed; return whether one has."""
        settings = self._pool.settings
        if self._stuck and now - self._stuck > settings.send_seconds:
            self._pool.count("slow_reader")
            self.transport.abort()
        elif self.transport.is_closing():
            self._closing = self._closing or now
            if now - self._closing <= settings.send_seconds:
                return False
            self.transport.abort()
        elif self._lingering:
            if now - self._lingering <= LINGER_SECONDS:
                return False
            self.transport.abort()
        elif self._arriving and now - self._arriving > settings.receive_seconds:
            self._overdue()
        elif not self._answered_once and not self._arriving and now - self._opened > settings.keep_alive_seconds:
            self.transport.close()
        else:
            if self._half_closed or self.flow.read_paused:
                self._check_peer()
            return False
        return True

    def shed(self) -> None:
        """End the request that holds the memory, and release it."""
        if self._arriving and not self._busy and not self._stuck:
            self._refuse(errors.unavailable("The service has no memory for this request now."), "memory_full")
        else:
            self._pool.count("memory_full")
            self.transport.abort()
        self._release_all()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP in the usual error format, in place of uvicorn's own response."""
        self._refuse(Refusal(400, "not_http", "This is not a request in HTTP/1.1."))

    def linger(self) -> None:
        """Stop sending and discard further input, so that the client reads its response before the close."""
        self._lingering = self.loop.time()
        self._head = self._ahead = self._body = None
        self._arriving = 0.0
        self._release_all()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.body.clear()
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.enough = False
        self.flow.resume_reading()
        self.transport.write_eof()

    def _overdue(self) -> None:
        if self._started and self.cycle.response_started:  # the response has been sent
            self.transport.abort()
            return
        seconds = self._pool.settings.receive_seconds
        self._refuse(Refusal(408, "too_slow", f"The request was not complete within {seconds:g} s."), "slow_sender")

    def _refuse(self, refusal: Refusal, reason: str | None = None) -> None:
        """Send a refusal without the application, and close."""
        self._pool.count(reason or refusal.code)
        if self._busy or (self._started and self.cycle.response_started):
            self.transport.abort()
            return
        self._answer_refusal(refusal)
        if not self._started:  # otherwise the application counts it as an abandoned request
            self._pool.metrics.answered("other", refusal.status)
        self.linger()

    def _answer_refusal(self, refusal: Refusal) -> None:
        if self._head is not None:
            without_body = self._head.startswith(b"HEAD ")
        else:
            without_body = bool(self._arriving) and self.parser.get_method() == b"HEAD"
        seconds = self.loop.time() - (self._arriving or self._opened)
        self.transport.write(answer_without_application(refusal, seconds, without_body))

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > MAX_DISCARDED * self._pool.settings.max_body_bytes:
            self.transport.abort()

    def _turns_away(self) -> bool:
        """Return whether to refuse a small request unread: the queue is full and its caller has used its share."""
        if not self._pool.full() or self._chunked or self._length > UNCHECKED_BYTES:
            return False
        scope = {"path": PATH, "headers": self.headers, "client": self.client}
        return self._pool.turns_away(Exchange(scope, frozenset(), self._pool.addresses))

    def _turn_away(self) -> None:
        """Answer 429 without the application; only the counters keep a trace of it."""
        self._turned_away = False
        pool = self._pool
        keep = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        pool.full_count.inc()
        pool.metrics.answered(PATH, 429)
        about = answer_about(given_or_new_id(dict(self.headers)), self.loop.time() - self._arriving)
        self.transport.write(next(pool.full_heads) + about + (b"\r\n" if keep else CLOSE) + pool.full_body)
        if keep:
            self.on_response_complete()  # uvicorn's: starts the keep-alive timer
        else:
            self.transport.close()

    def _probe_peer(self) -> None:
        """Detect whether a half-closed client still reads: a disconnected one resets the connection on the first bytes.

        All responses begin with the same bytes, so they can be sent before the status is known.
        """
        cycle = self.cycle
        if self._busy and not cycle.response_started and not self._status_begun:
            self._status_begun = True
            self.transport.write(STATUS_BEGINNING)
        self.loop.call_later(PROBE_SECONDS, self._check_peer)

    def _check_peer(self) -> None:
        if self.transport.is_closing():
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        seen = poll.poll(0)
        events = seen[0][1] if seen else 0
        if events & ENDED:
            self.transport.abort()
        elif events & select.POLLRDHUP and not self._half_closed:  # EOF is queued behind unread bytes
            self._half_closed = True
            self._probe_peer()

    def write_response(self, data: bytes) -> None:
        """Write a response without the bytes that were already sent."""
        if self._status_begun:
            self._status_begun = False
            data = data[len(STATUS_BEGINNING) :]
        elif data.startswith(b"HTTP/1.1 100 "):  # the body follows, so the connection can be kept
            self.cycle.keep_alive = self.parser.should_keep_alive()
        self.transport.write(data)

    def _hold(self, size: int) -> None:
        if not self._held:
            self.held_since = self.loop.time()
        self._held += size
        if self._pool.memory.add(size):
            self._relieve()

    def _keep_arriving(self, size: int) -> None:
        """Count the bytes of an arriving request; limit them when they are discarded."""
        if self._turned_away:
            self._discarded += size
            if self._discarded > self._pool.settings.max_body_bytes:
                self._refuse(self._pool.full_refusal, "queue_full")
            return
        if self._started:
            if self.cycle.response_complete:
                self._discard(size)
                return
            if not self._head_held:
                self._head_held = True
                size += PER_HEADER * len(self.headers)
                if self.cycle.waiting_for_100_continue:  # close after a refusal: the body may or may not follow
                    self.cycle.keep_alive = False
        self._hold(size + size // SPARE + PER_READ)

    def _relieve(self) -> None:
        if self._pool.memory.exceeded and not self.transport.is_closing():
            self._pool.memory.relieve(self, self.loop.time())

    def _release_read(self) -> None:
        """Release the bytes that the application has read."""
        if not self._arriving:
            self._release(self._held - (len(self._ahead) if self._ahead else 0))

    def _release(self, size: int) -> None:
        self._pool.memory.used -= size
        self._held -= size

    def _release_all(self) -> None:
        self._pool.memory.used -= self._held + self._unsent
        self._held = self._unsent = 0

    def _forget(self) -> None:
        """Drop the last request of an idle connection: it takes 9 kB, and there may be thousands of connections."""
        if self.idle:
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as before its first request
