"""One admitted request, from admission to its answer."""

import asyncio
from time import perf_counter
from typing import NamedTuple, Protocol

from service.access.callers import ANYONE, Caller
from service.engine.protocol import Query, Stages

SPECIAL_TOKENS = 2  # most tokenizers add one at each end
SHORT = 8  # tokens; below, padding costs next to nothing


class Lengths(NamedTuple):
    """Token lengths in a bundle's encoder: tokens per byte, most tokens per text, whether batches are padded."""

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
    """One admitted request. Await `answer` for the JSON of the results; it raises Refusal."""

    __slots__ = (
        "answer", "answer_bytes", "arrived", "asked", "batcher", "begun", "caller", "deaths", "expected_bytes",
        "missing", "next_cost", "parts", "seconds", "settled", "stages", "timer", "todo", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        asked: Query,
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
        self.settled = False  # answered, refused or cancelled, and removed from the queue
        self.arrived = self.begun = perf_counter()  # the loop's clock may have millisecond resolution
        self.stages: Stages | None = None
        self.deaths = 0
        self.begin(batcher, tokens)
        self.timer = loop.call_later(seconds, self._too_late)
        self.answer.add_done_callback(self._done)

    def begin(self, batcher: Owner, tokens: list[int]) -> None:
        """Start the request, or restart it with another bundle; partial answers are dropped."""
        count = len(tokens)
        self.batcher = batcher
        self.tokens = tokens
        self.todo = [(0, count)]  # spans of texts that were not sent to an engine
        self.next_cost = self.cost(0, min(count, batcher.slice_texts))  # of its next slice, while there is one
        self.parts: list[bytes | None] = [None] * count
        self.answer_bytes = 0  # answered so far
        self.expected_bytes = 0  # of the whole answer, as its batcher counts it
        self.missing = count

    @property
    def bundle(self) -> str:
        """Name of the bundle that answers the whole request."""
        return self.batcher.bundle

    def cost(self, start: int, stop: int) -> int:
        """Return the cost of some of its texts: hits plus tokens."""
        return (stop - start) * self.asked.k + sum(self.tokens[start:stop])

    def abandon(self) -> None:
        """Abandon the request: its client has disconnected."""
        self.batcher.abandon(self)

    def cut(self, texts: int, tokens: int, length: int | None = None) -> tuple[int, int]:
        """Take the next span of at most `texts` texts and `tokens` tokens in one length class; empty when none fits."""
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
        if answer.cancelled() and not self.settled:  # the awaiting handler was cancelled
            self.batcher.abandon(self)


class RequestSlice(NamedTuple):
    """A span of one request's texts, inside a batch."""

    request: PendingRequest
    start: int
    stop: int

    @property
    def hits(self) -> int:
        """Number of hits that it may have."""
        return (self.stop - self.start) * self.request.asked.k

    def asked(self) -> Query:
        """Return the query for the engine."""
        asked = self.request.asked
        if self.stop - self.start == len(asked.texts):
            return asked
        return asked.with_texts(asked.texts[self.start : self.stop])


def length_class(tokens: int) -> int:
    """Return the length class: within a class, lengths differ by less than a factor of two."""
    return max(tokens, SHORT).bit_length()
