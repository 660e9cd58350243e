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
    slice_texts: int  # texts of one request that are sent together, at most

    def abandon(self, request: "PendingRequest") -> None: ...
    def too_late(self, request: "PendingRequest") -> None: ...


class PendingRequest:
    """One admitted request. Await `answer`: the results' JSON, or a Refusal is raised."""

    __slots__ = (
        "answer", "answer_bytes", "arrived", "asked", "batcher", "begun", "caller", "deaths", "missing", "next_cost",
        "parts", "seconds", "settled", "stages", "timer", "todo", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        asked: Asked,
        tokens: list[int],
        seconds: float,
        batcher: Owner,
        loop: asyncio.AbstractEventLoop,
        caller: Caller = ANYONE,
    ) -> None:
        """`tokens` has the estimated length of each text, by the batcher's `lengths`."""
        self.asked = asked
        self.caller = caller
        self.seconds = seconds
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.settled = False  # answered, refused or cancelled, and out of the queue
        self.arrived = self.begun = perf_counter()  # a loop's own clock may tick in milliseconds
        self.stages: Stages | None = None
        self.deaths = 0
        self.begin(batcher, tokens)
        self.timer = loop.call_later(seconds, self._too_late)
        self.answer.add_done_callback(self._done)

    def begin(self, batcher: Owner, tokens: list[int]) -> None:
        """Start, or start anew with another bundle: what the former one answered is forgotten."""
        count = len(tokens)
        self.batcher = batcher
        self.tokens = tokens
        self.todo = [(0, count)]  # spans of queries that no engine is working on
        self.next_cost = self.cost(0, min(count, batcher.slice_texts))  # of its next slice, while there is one
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

    def abandon(self) -> None:
        """Give up: nobody waits for this answer any more."""
        self.batcher.abandon(self)

    def cut(self, texts: int, tokens: int, length: int | None = None) -> tuple[int, int]:
        """Take the next span, of at most so many texts and tokens, all of one length class; empty when none fits."""
        start, stop = self.todo[0]
        end, last = start, min(stop, start + texts)
        while end < last and self.tokens[end] <= tokens:
            if length is not None and length_class(self.tokens[end]) != length:
                break
            tokens -= self.tokens[end]
            end += 1
        if end == stop:
            del self.todo[0]
        else:
            self.todo[0] = (end, stop)
        if self.todo:
            self._note_next_cost()
        return start, end

    def put_back(self, start: int, stop: int) -> None:
        """Undo `cut`: the span is sent again before the others."""
        self.todo.insert(0, (start, stop))
        self._note_next_cost()

    def _note_next_cost(self) -> None:
        start, stop = self.todo[0]
        self.next_cost = self.cost(start, min(stop, start + self.batcher.slice_texts))

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
        asked = self.request.asked
        if self.stop - self.start == len(asked.queries):
            return asked
        return asked._replace(queries=asked.queries[self.start : self.stop])


def length_class(tokens: int) -> int:
    """Return the class of a length: the longest of a class is less than twice as long as the shortest."""
    return max(tokens, SHORT).bit_length()
