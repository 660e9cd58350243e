"""One memory budget over all connections: what they have sent and is not answered yet, and what they do not read."""

from collections.abc import Callable, Iterable
from typing import Protocol

ALLOWANCE = 8192  # bytes that a connection may always hold: small requests get through whatever others hold
SPARE = 8  # a growing buffer takes an eighth more than it holds
PER_READ = 64  # bytes that a piece costs beside its content
PER_HEADER = 160  # bytes of objects for one header beside its content
STALLED = 1.0  # seconds; what has been held for longer may have to go
RELIEVED = 0.9  # of the budget, what is left after memory was made free
BETWEEN_SEARCHES = 0.25  # seconds; looking through thousands of connections costs half a millisecond


class Holder(Protocol):
    """A connection that holds memory."""

    @property
    def held(self) -> int:
        """Bytes it holds now."""

    @property
    def held_since(self) -> float:
        """When it began to hold them, in seconds of the loop's clock."""

    def shed(self) -> None:
        """End what holds the memory, and release it."""


class MemoryBudget:
    """Bytes that all connections hold together; over the limit, requests that have held most for longest end."""

    def __init__(self, limit: int, holders: Callable[[], Iterable[Holder]]) -> None:
        """`limit` is in bytes; `holders` gives all connections."""
        self.limit = limit
        self.used = 0
        self._holders = holders
        self._next_search = 0.0

    def add(self, size: int) -> bool:
        """Count more bytes. Whether the limit is exceeded now."""
        self.used += size
        return self.used > self.limit

    @property
    def exceeded(self) -> bool:
        """Whether more is held than the limit."""
        return self.used > self.limit

    def relieve(self, requester: Holder, now: float) -> None:
        """Make room: end stalled requests, those with the most bytes × seconds first, else the requester itself."""
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
