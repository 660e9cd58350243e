"""Manage all open connections of one service, bounded in number, memory and time."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from service import errors
from service.connections.connection import Connection
from service.connections.early_refusals import EarlyRefusals
from service.connections.framing import HeadLimits
from service.connections.memory_budget import MemoryBudget
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.request_context import RequestContext
from service.settings import Settings

LOG = logging.getLogger("diptych")
MAX_CHECK_INTERVAL = 1.0  # seconds between two checks of a connection
CHECKS = 4  # in the shortest time limit
PER_CHECK = 8  # connections; closing one takes as long as an answer, and thousands may be overdue together
BETWEEN_ENDS = 0.001  # seconds between two connections that are ended because a time limit has passed
BETWEEN_SEARCHES = 0.05  # seconds after a search without result, which may take milliseconds

BETWEEN_TURNS = 0.001  # seconds between two pipelined requests
BETWEEN_MANY_TURNS = 0.01  # seconds, while many connections have pipelined requests
MANY_TURNS = 32  # connections


class ConnectionPool:
    """All open connections of one service."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        queue_is_full: Callable[[], bool],
        is_refused: Callable[[RequestContext], bool],
    ) -> None:
        """Set up the pool. `queue_is_full` and `is_refused` are those of EarlyRefusals."""
        self.settings = settings
        self.metrics = metrics
        self.head_limits = HeadLimits(settings.max_head_bytes, settings.max_headers)
        self.memory = MemoryBudget(settings.connection_bytes, lambda: list(self._open))
        self.early_refusals = EarlyRefusals(settings, metrics, queue_is_full, is_refused)
        self._open: dict[Connection, None] = {}  # in order of opening
        self._never_used: dict[Connection, None] = {}  # those that have not sent a whole request
        self._turns: dict[Connection, None] = {}  # those with pipelined requests, the next one first
        self._next_turn_at = 0.0
        self._turn_timer: asyncio.TimerHandle | None = None
        self._next_search_at = 0.0  # for a connection to close at the limit
        metrics.connections.set_function(lambda: len(self._open))
        metrics.connection_bytes.set_function(lambda: self.memory.used)

    @property
    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """Factory of connections for uvicorn."""
        return partial(Connection, self)

    def count(self, reason: str) -> None:
        """Count a rejected request."""
        self.metrics.rejections.labels(reason).inc()

    def add(self, connection: Connection) -> Refusal | None:
        """Add a connection; at the limit, close an unused one. Return the refusal when there is none."""
        if len(self._open) >= self.settings.max_connections:
            victim = self._least_useful(asyncio.get_running_loop().time())
            if victim is None:
                self.count("too_many_connections")
                message = "The service has no room for another connection. Try again in a second."
                return Refusal(503, "too_many_connections", message, errors.retry_after())
            self.count("made_room")
            self.remove(victim)
            victim.transport.abort()
        self._open[connection] = self._never_used[connection] = None
        return None

    def note_first_request(self, connection: Connection) -> None:
        """Note that a connection has sent its first whole request."""
        self._never_used.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Remove a connection."""
        self._open.pop(connection, None)
        self._never_used.pop(connection, None)
        self._turns.pop(connection, None)

    def schedule_turn(self, connection: Connection) -> None:
        """Schedule the next pipelined request of a connection.

        The turns per second are limited over all connections, so that clients that pipeline thousands of requests delay
        others by a few requests only.
        """
        self._turns[connection] = None
        self._start_turn_timer()

    async def watch(self) -> None:
        """Check all connections periodically, a few at a time."""
        settings = self.settings
        shortest = min(settings.receive_seconds, settings.send_seconds, settings.keep_alive_seconds)
        interval = min(MAX_CHECK_INTERVAL, shortest / CHECKS)
        loop = asyncio.get_running_loop()
        while True:
            connections = list(self._open)
            starts = range(0, max(len(connections), 1), PER_CHECK)
            for start in starts:
                await asyncio.sleep(interval / len(starts))
                now = loop.time()
                for connection in connections[start : start + PER_CHECK]:
                    if connection in self._open and self._check(connection, now):
                        await asyncio.sleep(BETWEEN_ENDS)
                        now = loop.time()

    def _start_turn_timer(self) -> None:
        """Start the timer of the next turn. There is one at a time, also when connections close before their turn."""
        if self._turns and self._turn_timer is None:
            loop = asyncio.get_running_loop()
            self._turn_timer = loop.call_later(max(0.0, self._next_turn_at - loop.time()), self._run_turn)

    def _run_turn(self) -> None:
        self._turn_timer = None
        if not self._turns:
            return
        connection = next(iter(self._turns))
        del self._turns[connection]
        pause = BETWEEN_TURNS if len(self._turns) < MANY_TURNS else BETWEEN_MANY_TURNS
        self._next_turn_at = asyncio.get_running_loop().time() + pause
        self._start_turn_timer()
        connection.read_next_request()

    def _least_useful(self, now: float) -> Connection | None:
        """Return a connection to close: one without any request, else an idle one, else the longest stalled one."""
        if unused := next(iter(self._never_used), None):
            return unused
        if now < self._next_search_at:
            return None
        if idle := next((connection for connection in self._open if connection.idle), None):
            return idle
        stalled = min(self._open, key=lambda connection: connection.stalled_since)
        if now - stalled.stalled_since > self.settings.receive_seconds / 2:
            return stalled
        self._next_search_at = now + BETWEEN_SEARCHES
        return None

    @staticmethod
    def _check(connection: Connection, now: float) -> bool:
        try:
            return connection.check_limits(now)
        except Exception:  # one faulty connection must not stop the check of the others
            LOG.exception("a connection was closed because its check failed")
            connection.transport.abort()
            return True
