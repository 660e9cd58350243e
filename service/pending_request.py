"""One admitted request, from admission to its answer."""

import asyncio
from time import perf_counter
from typing import NamedTuple, Protocol

from service.callers import ANYONE, Caller
from service.frames import Asked, Stages

SPECIAL_TOKENS = 2  # most tokenizers add one at each end
SHORT = 8  # tokens; below, padding costs next to nothing


class Lengths(NamedTuple):
    """How long a bundle's encoder makes texts: tokens per byte, the most of a text, whether a batch is padded."""

    tokens_per_byte: float
    most: int
    padded: bool

    def tokens(self, query: str) -> int:
        """Estimate how many tokens a text has."""
        return min(SPECIAL_TOKENS + int(self.tokens_per_byte * len(query.encode())), self.most)


class Owner(Protocol):
    """The batcher that a pending request belongs to."""

    bundle: str
    lengths: Lengths

    def abandon(self, request: "PendingRequest") -> None: ...
    def too_late(self, request: "PendingRequest") -> None: ...


class PendingRequest:
    """One admitted request. Await `answer`: the results' JSON, or a Refusal is raised."""

    __slots__ = (
        "answer", "answer_bytes", "arrived", "asked", "batcher", "begun", "caller", "deaths", "missing", "parts",
        "seconds", "settled", "stages", "timer", "todo", "tokens",
    )  # fmt: skip

    def __init__(
        self, asked: Asked, seconds: float, batcher: Owner, loop: asyncio.AbstractEventLoop, caller: Caller = ANYONE
    ) -> None:
        self.asked = asked
        self.caller = caller
        self.seconds = seconds
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.settled = False  # answered, refused or cancelled, and out of the queue
        self.arrived = self.begun = perf_counter()  # a loop's own clock may tick in milliseconds
        self.stages: Stages | None = None
        self.deaths = 0
        self.begin(batcher)
        self.timer = loop.call_later(seconds, self._too_late)
        self.answer.add_done_callback(self._done)

    def begin(self, batcher: Owner) -> None:
        """Start, or start anew with another bundle: what the former one answered is forgotten."""
        count = len(self.asked.queries)
        self.batcher = batcher
        self.tokens = [batcher.lengths.tokens(query) for query in self.asked.queries]
        self.todo = [(0, count)]  # spans of queries that no engine is working on
        self.parts: list[bytes | None] = [None] * count
        self.answer_bytes = 0
        self.missing = count

    @property
    def bundle(self) -> str:
        """The bundle that answers it, the whole of it."""
        return self.batcher.bundle

    def cost(self, start: int, stop: int) -> int:
        """Return what some of its texts cost an engine: their hits and their tokens."""
        return (stop - start) * self.asked.k + sum(self.tokens[start:stop])

    def next_cost(self, texts: int) -> int:
        """Return the cost of its next slice of at most so many texts."""
        start, stop = self.todo[0]
        return self.cost(start, min(stop, start + texts))

    def abandon(self) -> None:
        """Give up: nobody waits for this answer any more."""
        self.batcher.abandon(self)

    def cut(self, texts: int, tokens: int, length: int | None = None) -> tuple[int, int]:
        """Take the next span, of at most so many texts and tokens, all of one length class; empty when none fits."""
        start, stop = self.todo[0]
        end = start
        while end < min(stop, start + texts) and self.tokens[end] <= tokens:
            if length is not None and length_class(self.tokens[end]) != length:
                break
            tokens -= self.tokens[end]
            end += 1
        if end == stop:
            del self.todo[0]
        else:
            self.todo[0] = (end, stop)
        return start, end

    def _too_late(self) -> None:
        self.batcher.too_late(self)

    def _done(self, answer: "asyncio.Future[bytes]") -> None:
        if answer.cancelled() and not self.settled:  # whoever awaited it was cancelled, and nobody else knows
            self.batcher.abandon(self)


class RequestSlice(NamedTuple):
    """A span of one request's texts, inside a batch."""

    request: PendingRequest
    start: int
    stop: int

    def asked(self) -> Asked:
        """Return what the engine is asked."""
        return self.request.asked._replace(queries=self.request.asked.queries[self.start : self.stop])


def length_class(tokens: int) -> int:
    """Return the class of a length: the longest of a class is less than twice as long as the shortest."""
    return max(tokens, SHORT).bit_length()
