"""Limit one client connection: what it may send, hold and leave unread, and for how long.

uvicorn limits only the idle time of a connection. Here, unanswered bytes count against a shared memory budget, and
pipelined requests wait as bytes for their turn. The pool checks every connection once per second, so that a request
in time sets a few attributes and no timer.
"""

from typing import Any, cast

from service import errors
from service.connections.direct_responses import closing_response
from service.connections.interfaces import Pool
from service.connections.memory_budget import PER_HEADER, PER_READ, SPARE
from service.connections.peer import PeerState, peer_state
from service.connections.request_reader import RequestReader
from service.connections.response_transport import STATUS_BEGINNING, ReadControl, ResponseTransport
from service.errors import Refusal
from service.http import paths
from service.request_context import RequestContext

PREDICT_PATH = paths.PREDICT.encode()
MAX_PIPELINED = 16_384  # bytes of pipelined requests that are buffered
MAX_UNSENT = 8192  # bytes of an unread response that are not counted
MAX_DISCARDED = 16  # times the largest body, discarded after a response: clients that still send would not read it
LINGER_SECONDS = 2.0  # time for the client to read a refusal before the connection is closed
PROBE_SECONDS = 0.05  # time for a disconnected peer to reset the connection


class Connection(RequestReader):
    """uvicorn's connection with limits on memory, time and pipelining."""

    # in a dictionary, beside uvicorn's 27 attributes, they would take 1 kB per connection (docs/decisions/0058)
    __slots__ = (
        "_closing_since", "_discarded", "_half_closed", "_has_sent_request", "_head_held", "_held", "_opened_at",
        "_pipelined", "_pool", "_refused_early", "_responding", "_status_begun", "_unread_since", "_unsent",
        "held_since",
    )  # fmt: skip

    def __init__(self, pool: Pool["Connection"], **uvicorn_arguments: Any) -> None:
        super().__init__(pool.head_limits, **uvicorn_arguments)
        self._pool = pool
        self._opened_at = self.loop.time()
        self._pipelined: bytearray | None = None  # buffered pipelined requests
        self._responding = False  # a whole request is being answered
        self._refused_early = False  # the arriving request will be refused without the application
        self._head_held = False  # the headers of the request that is arriving are in the memory budget
        self._has_sent_request = False  # it has sent a whole request
        self._half_closed = False  # the client will send no more
        self._status_begun = False  # the first bytes of the next response have been sent
        self._unread_since = 0.0  # time since the client stopped reading its response; 0: it reads
        self._closing_since = 0.0  # when it was first seen closing
        self._discarded = 0  # discarded bytes
        self._held = self._unsent = 0  # bytes in the memory budget: received and unread by the client
        self.held_since = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is arriving, waiting or being answered."""
        return not self._arriving_since and not self._pipelined and self._all_answered

    @property
    def held(self) -> int:
        """Bytes that it holds in the memory budget."""
        return self._held + self._unsent

    @property
    def stalled_since(self) -> float:
        """Loop time since it has been sending one request or not reading; infinite when it does neither."""
        return min(
            self._arriving_since or float("inf"),
            self._unread_since or float("inf"),
            self._lingering_since or float("inf"),
        )

    @property
    def request_is_arriving(self) -> bool:
        """Whether a request is partly received."""
        return bool(self._arriving_since)

    @property
    def _all_answered(self) -> bool:
        """Whether all of its requests are answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow: ReadControl = ReadControl(transport)
        transport.set_write_buffer_limits(MAX_UNSENT)
        if refusal := self._pool.add(self):
            self._send_refusal(refusal)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.remove(self)
        self._release_all()
        self._head = self._pipelined = None
        if self.cycle is not None:
            context = cast(RequestContext | None, self.cycle.scope.get("request_context"))
            if context:
                context.abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering_since or self.transport.is_closing():
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        if self._responding or self._pipelined:
            self._buffer_pipelined(data, 0)
        else:
            self._receive(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Return whether to keep the half-closed connection for its response."""
        if self._lingering_since or not (self._responding or self._pipelined):
            return False
        self._half_closed = True
        self._probe_peer()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()
        if not self._held:
            self.held_since = self._unread_since
        self._unsent = self.transport.get_write_buffer_size()
        if self._pool.memory.add(self._unsent):
            self.loop.call_soon(self._free_memory)  # later: the transport is in the middle of a write

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = 0.0
        self._pool.memory.used -= self._unsent
        self._unsent = 0
        if self._pipelined and not self._responding:
            self._pool.schedule_turn(self)

    def read_next_request(self) -> None:
        """Read the next pipelined request."""
        if self.flow.write_paused or self._lingering_since or self.transport.is_closing():
            return  # the client must first read its response; then it gets another turn
        data, self._pipelined = self._pipelined, None
        if data is None:
            return
        self._release(len(data))
        self._unset_keepalive_if_required()
        self.flow.buffer_is_full = False
        self._receive(bytes(data))
        self.flow.resume_reading()
        if self._half_closed and not (self._responding or self._pipelined):
            self.transport.close()

    def _buffer_pipelined(self, data: bytes, start: int) -> None:
        """Buffer pipelined bytes; pause reading when there are enough."""
        if self._pipelined is None:
            self._pipelined = bytearray()
        self._pipelined += data[start:]
        if len(self._pipelined) > MAX_PIPELINED:
            self.flow.buffer_is_full = True
            self.flow.pause_reading()
        if not self._responding:
            self._pool.schedule_turn(self)
        self._hold(len(data) - start)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._upgrade = True
            return
        waits = self.expect_100_continue  # the client holds its body back
        if self.url == PREDICT_PATH and not waits and self.parser.get_method() == b"POST":
            self._refused_early = self._pool.early_refusals.apply_to(
                self.headers, self.client, self._length, self._chunked
            )
        if self._chunked or self._length:
            self._body = self._length
        if not self._refused_early:
            super().on_headers_complete()
            self.cycle.transport = cast(Any, ResponseTransport(self))
            self._started, self._head_held = True, False

    def on_body(self, body: bytes) -> None:
        if not self._refused_early:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        self._done, self._body = True, None
        if self._refused_early:
            self._refuse_early()
        else:
            super().on_message_complete()
            self._responding = self._started = not self.cycle.response_complete
        self._arriving_since = 0.0
        self._discarded = 0
        if self._held:  # the application reads the body before anything else happens
            self.loop.call_soon(self._release_read)
        if not self._responding:
            self._drop_request_state()
        if not self._has_sent_request:
            self._has_sent_request = True
            self._pool.note_first_request(self)

    def on_response_complete(self) -> None:
        if self.cycle is not None:
            cast(ResponseTransport, self.cycle.transport).flush()
        super().on_response_complete()
        self._responding = False
        if self._arriving_since:
            self._release(self._held - (len(self._pipelined) if self._pipelined else 0))  # the rest is thrown away
        else:
            self._started = False
            if self._held:
                self._release_read()
        if self._pipelined:
            self._pool.schedule_turn(self)
        elif self._half_closed:
            self.transport.close()
        self._drop_request_state()

    def check_limits(self, now: float) -> bool:
        """Close the connection when a time limit has passed; return whether one has."""
        settings = self._pool.settings
        if self._unread_since and now - self._unread_since > settings.send_seconds:
            self._pool.count("slow_reader")
            self.transport.abort()
        elif self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since <= settings.send_seconds:
                return False
            self.transport.abort()
        elif self._lingering_since:
            if now - self._lingering_since <= LINGER_SECONDS:
                return False
            self.transport.abort()
        elif self._arriving_since and now - self._arriving_since > settings.receive_seconds:
            self._end_overdue()
        elif (
            not self._has_sent_request
            and not self._arriving_since
            and now - self._opened_at > settings.keep_alive_seconds
        ):
            self.transport.close()
        else:
            if self._half_closed or self.flow.read_paused:
                self._check_peer()
            return False
        return True

    def shed(self) -> None:
        """End the request that holds the memory, and release it."""
        if self._arriving_since and not self._responding and not self._unread_since:
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
        self._lingering_since = self.loop.time()
        self._head = self._pipelined = self._body = None
        self._arriving_since = 0.0
        self._release_all()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.body.clear()
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.buffer_is_full = False
        self.flow.resume_reading()
        self.transport.write_eof()

    def _end_overdue(self) -> None:
        if self._started and self.cycle.response_started:  # the response has been sent
            self.transport.abort()
            return
        seconds = self._pool.settings.receive_seconds
        self._refuse(Refusal(408, "too_slow", f"The request was not complete within {seconds:g} s."), "slow_sender")

    def _refuse(self, refusal: Refusal, reason: str | None = None) -> None:
        """Send a refusal without the application, and close."""
        self._pool.count(reason or refusal.code)
        if self._responding or (self._started and self.cycle.response_started):
            self.transport.abort()
            return
        self._send_refusal(refusal)
        if not self._started:  # otherwise the application counts it as an abandoned request
            self._pool.metrics.count_response("other", refusal.status)
        self.linger()

    def _send_refusal(self, refusal: Refusal) -> None:
        if self._head is not None:
            without_body = self._head.startswith(b"HEAD ")
        else:
            without_body = bool(self._arriving_since) and self.parser.get_method() == b"HEAD"
        seconds = self.loop.time() - (self._arriving_since or self._opened_at)
        self.transport.write(closing_response(refusal, seconds, without_body))

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > MAX_DISCARDED * self._pool.settings.max_body_bytes:
            self.transport.abort()

    def _refuse_early(self) -> None:
        """Send 429 without the application."""
        self._refused_early = False
        keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        seconds = self.loop.time() - self._arriving_since
        self.transport.write(self._pool.early_refusals.response(self.headers, seconds, keep_alive))
        if keep_alive:
            self.on_response_complete()  # uvicorn's: starts the keep-alive timer
        else:
            self.transport.close()

    def _probe_peer(self) -> None:
        """Detect whether a half-closed client still reads: a disconnected one resets the connection on the first bytes.

        All responses begin with the same bytes, so they can be sent before the status is known.
        """
        cycle = self.cycle
        if self._responding and not cycle.response_started and not self._status_begun:
            self._status_begun = True
            self.transport.write(STATUS_BEGINNING)
        self.loop.call_later(PROBE_SECONDS, self._check_peer)

    def _check_peer(self) -> None:
        if self.transport.is_closing():
            return
        state = peer_state(self.transport.get_extra_info("socket"))
        if state is PeerState.DISCONNECTED:
            self.transport.abort()
        elif state is PeerState.HALF_CLOSED and not self._half_closed:  # EOF is queued behind unread bytes
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
            self._free_memory()

    def _count_arriving(self, size: int) -> None:
        """Count the bytes of an arriving request; limit them when they are discarded."""
        if self._refused_early:
            self._discarded += size
            if self._discarded > self._pool.settings.max_body_bytes:
                self._refuse(self._pool.early_refusals.refusal, "queue_full")
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

    def _free_memory(self) -> None:
        if self._pool.memory.exceeded and not self.transport.is_closing():
            self._pool.memory.relieve(self, self.loop.time())

    def _release_read(self) -> None:
        """Release the bytes that the application has read."""
        if not self._arriving_since:
            self._release(self._held - (len(self._pipelined) if self._pipelined else 0))

    def _release(self, size: int) -> None:
        self._pool.memory.used -= size
        self._held -= size

    def _release_all(self) -> None:
        self._pool.memory.used -= self._held + self._unsent
        self._held = self._unsent = 0

    def _drop_request_state(self) -> None:
        """Drop the last request of an idle connection: it takes 9 kB, and there may be thousands of connections."""
        if self.idle:
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as before its first request
