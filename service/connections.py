"""All open connections of one service: bounded in number, in memory and in time.

What comes while the queue is full is answered by the connection, before anything is made of it: under three times the
load that can be answered, refusing must cost a fraction of answering, or there is no time left for either.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from itertools import cycle

from service import errors
from service.client_address import ClientAddresses
from service.connection import Connection
from service.connection_memory import MemoryBudget
from service.direct_answers import answer_head
from service.errors import Refusal
from service.exchange import Exchange
from service.metrics import Metrics
from service.request_framing import HeadLimits
from service.settings import Settings

LOG = logging.getLogger("diptych")
SOON = "as many texts as can be answered soon"
LONGEST_PAUSE = 1.0  # seconds between two checks of a connection
CHECKS = 4  # in the shortest time limit
PER_CHECK = 8  # connections: cutting one off takes as long as an answer, and thousands may be overdue together
BETWEEN_SEARCHES = 0.05  # seconds; a search of thousands of connections in vain takes milliseconds

BETWEEN_TURNS = 0.001  # seconds between two requests that were sent ahead of their turn
BETWEEN_MANY_TURNS = 0.01  # the same while many connections wait for theirs
MANY_TURNS = 32  # connections


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
        self.head_limits = HeadLimits(settings.max_head_bytes, settings.max_headers)
        self.memory = MemoryBudget(settings.connection_bytes, lambda: list(self._open))
        # a line in the log, and the headers without which a page of others sees no answer, are for what was heard
        self.full = _never if settings.log_requests == "all" or settings.origins else full
        self.turns_away = turns_away
        self.addresses = ClientAddresses(settings.trusted_proxies)
        # made beforehand, one for each Retry-After, which are given in turn
        refusals = [errors.overloaded(SOON, seconds) for seconds in range(1, errors.longest_retry() + 1)]
        self.full_refusal = refusals[0]
        self.full_heads = cycle([answer_head(refusal) for refusal in refusals])
        self.full_body = bytes(self.full_refusal.response().body)
        self.full_count = metrics.rejections.labels("queue_full")
        self._open: dict[Connection, None] = {}  # in the order of their opening
        self._never_used: dict[Connection, None] = {}  # those of them that have not sent a whole request yet
        self._turns: dict[Connection, None] = {}  # those with requests that were sent ahead, the first the next
        self._next_turn_at = 0.0
        self._next_search_at = 0.0  # for a connection that makes room
        metrics.connections.set_function(lambda: len(self._open))
        metrics.connection_bytes.set_function(lambda: self.memory.used)

    @property
    def protocol(self) -> Callable[..., asyncio.Protocol]:
        """What uvicorn makes for each connection."""
        return partial(Connection, self)

    def count(self, reason: str) -> None:
        """Count a request that was turned away."""
        self.metrics.rejections.labels(reason).inc()

    def opened(self, connection: Connection) -> Refusal | None:
        """Take a connection in; one that is not in use makes room at the limit. The refusal when there is none."""
        if len(self._open) >= self.settings.max_connections:
            victim = self._least_useful(asyncio.get_running_loop().time())
            if victim is None:
                self.count("too_many_connections")
                message = "The service has no room for another connection. Try again in a second."
                return Refusal(503, "too_many_connections", message, errors.retry_after())
            self.count("made_room")
            self.closed(victim)
            victim.transport.abort()
        self._open[connection] = self._never_used[connection] = None
        return None

    def asked(self, connection: Connection) -> None:
        """Note that it has sent a whole request."""
        self._never_used.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._open.pop(connection, None)
        self._never_used.pop(connection, None)
        self._turns.pop(connection, None)

    def take_turn(self, connection: Connection) -> None:
        """Read a connection's next request when it is its turn.

        There are so many turns a second, of all connections together: clients that send thousands of requests at once
        delay the requests of others by one of theirs now and then, not by all.
        """
        if not self._turns:
            loop = asyncio.get_running_loop()
            loop.call_later(max(0.0, self._next_turn_at - loop.time()), self._give_turn)
        self._turns[connection] = None

    async def watch(self) -> None:
        """Check every connection, again and again: a few at a time, spread over the pause."""
        settings = self.settings
        shortest = min(settings.receive_seconds, settings.send_seconds, settings.keep_alive_seconds)
        pause = min(LONGEST_PAUSE, shortest / CHECKS)
        loop = asyncio.get_running_loop()
        while True:
            everyone = list(self._open)
            starts = range(0, max(len(everyone), 1), PER_CHECK)
            for start in starts:
                await asyncio.sleep(pause / len(starts))
                now = loop.time()
                for connection in everyone[start : start + PER_CHECK]:
                    if connection in self._open:
                        self._look(connection, now)

    def _give_turn(self) -> None:
        if not self._turns:
            return
        connection = next(iter(self._turns))
        del self._turns[connection]
        loop = asyncio.get_running_loop()
        pause = BETWEEN_TURNS if len(self._turns) < MANY_TURNS else BETWEEN_MANY_TURNS
        self._next_turn_at = loop.time() + pause
        if self._turns:
            loop.call_later(pause, self._give_turn)
        connection.take_turn()

    def _least_useful(self, now: float) -> Connection | None:
        """One that never asked, else one that idles, else the one that has stalled longest."""
        if unused := next(iter(self._never_used), None):
            return unused
        if now < self._next_search_at:
            return None
        if idle := next((one for one in self._open if one.idle), None):
            return idle
        stalled = min(self._open, key=lambda one: one.stalled_since)
        if now - stalled.stalled_since > self.settings.receive_seconds / 2:
            return stalled
        self._next_search_at = now + BETWEEN_SEARCHES
        return None

    @staticmethod
    def _look(connection: Connection, now: float) -> None:
        try:
            connection.look(now)
        except Exception:  # else one connection's fault would leave all the others unwatched
            LOG.exception("a connection was cut off, since it could not be judged")
            connection.transport.abort()


def _never() -> bool:
    return False
