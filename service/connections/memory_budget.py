"""Bound the memory of all connections together: unanswered requests and unread answers."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

ALLOWANCE = 8192  # bytes that every connection may hold, so that small requests always get through
SPARE = 8  # a growing buffer allocates 1/8 more than its content
PER_READ = 64  # overhead in bytes of one read
PER_HEADER = 160  # overhead in bytes of one header
STALLED = 1.0  # seconds; requests that hold memory for longer may be ended
RELIEVED = 0.9  # fraction of the limit that remains in use after memory was freed
BETWEEN_SEARCHES = 0.25  # seconds; searching thousands of connections takes half a millisecond
ENDED_TOGETHER = 4  # requests; ending one takes about as long as answering one


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
        self._stalled: deque[Holder] = deque()  # found by the last search, those to end first in front

    def add(self, size: int) -> bool:
        """Count more bytes; return whether the limit is exceeded."""
        self.used += size
        return self.used > self.limit

    @property
    def exceeded(self) -> bool:
        """Whether the limit is exceeded."""
        return self.used > self.limit

    def relieve(self, requester: Holder, now: float) -> None:
        """Free memory: end a few stalled requests, those with the most bytes × seconds first, else the requester."""
        if not self._stalled and now >= self._next_search:
            self._find_stalled(now)
        ended = 0
        while self._stalled and ended < ENDED_TOGETHER and self.used > RELIEVED * self.limit:
            holder = self._stalled.popleft()
            if _is_stalled(holder, now):
                holder.shed()
                ended += 1
        if self.exceeded and requester.held > ALLOWANCE:
            requester.shed()

    def _find_stalled(self, now: float) -> None:
        """Find the requests to end until RELIEVED of the limit is used."""
        self._next_search = now + BETWEEN_SEARCHES
        stalled = [holder for holder in self._holders() if _is_stalled(holder, now)]
        stalled.sort(key=lambda holder: holder.held * (now - holder.held_since), reverse=True)
        excess = self.used - RELIEVED * self.limit
        for holder in stalled:
            if excess <= 0:
                break
            self._stalled.append(holder)
            excess -= holder.held


def _is_stalled(holder: Holder, now: float) -> bool:
    return holder.held > ALLOWANCE and now - holder.held_since > STALLED
