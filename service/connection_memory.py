"""Bound the memory of all connections together: unanswered requests and unread answers."""

from collections.abc import Callable, Iterable
from typing import Protocol

ALLOWANCE = 8192  # bytes that every connection may hold, so that small requests always get through
SPARE = 8  # a growing buffer allocates 1/8 more than its content
PER_READ = 64  # overhead in bytes of one read
PER_HEADER = 160  # overhead in bytes of one header
STALLED = 1.0  # seconds; requests that hold memory for longer may be ended
RELIEVED = 0.9  # fraction of the limit that remains in use after memory was freed
BETWEEN_SEARCHES = 0.25  # seconds; searching thousands of connections takes half a millisecond


class Holder(Protocol):
    """A connection that holds memory."""

    @property
    def held(self) -> int:
        """Bytes that it holds."""

    @property
    def held_since(self) -> float:
        """Loop time when it began to hold them."""

    def shed(self) -> None:
        """End the request that holds the memory, and release it."""


class MemoryBudget:
    """Total bytes held by all connections. Over the limit, the requests with the most bytes × seconds are ended."""

    def __init__(self, limit: int, holders: Callable[[], Iterable[Holder]]) -> None:
        """Set up the budget. `limit` is in bytes; `holders` returns all connections."""
        self.limit = limit
        self.used = 0
        self._holders = holders
        self._next_search = 0.0

    def add(self, size: int) -> bool:
        """Count more bytes; return whether the limit is exceeded."""
        self.used += size
        return self.used > self.limit

    @property
    def exceeded(self) -> bool:
        """Whether the limit is exceeded."""
        return self.used > self.limit

    def relieve(self, requester: Holder, now: float) -> None:
        """Free memory: end stalled requests, those with the most bytes × seconds first, else the requester."""
        if now >= self._next_search:
            self._end_stalled(now)
            if not self.exceeded:
                return
            self._next_search = now + BETWEEN_SEARCHES
        if requester.held > ALLOWANCE:
            requester.shed()

    def _end_stalled(self, now: float) -> None:
        stalled = [one for one in self._holders() if one.held > ALLOWANCE and now - one.held_since > STALLED]
        stalled.sort(key=lambda one: one.held * (now - one.held_since), reverse=True)
        for one in stalled:
            if self.used <= RELIEVED * self.limit:
                return
            one.shed()
