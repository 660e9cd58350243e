"""One admitted request, from admission to its answer."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from service.access.callers import ANYONE, Caller
from service.engine.protocol import Query, Stages

SHORT_TOKENS = 8  # below, padding costs next to nothing


class RequestOwner(Protocol):
    """The batcher that a pending request belongs to."""

    bundle: str
    slice_texts: int  # texts of one request that are sent together, at most

    def abandon(self, request: "PendingRequest") -> None: ...
    def on_deadline(self, request: "PendingRequest") -> None: ...


class PendingRequest:
    """One admitted request. Await `answer` for the JSON of the results; it raises Refusal."""

    __slots__ = (
        "answer", "answer_bytes", "arrived", "batcher", "begun", "caller", "deaths", "expected_bytes", "k", "missing",
        "next_cost", "parts", "query", "seconds", "settled", "stages", "timer", "todo", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        query: Query,
        tokens: list[int],
        seconds: float,
        batcher: RequestOwner,
        now: float,
        caller: Caller = ANYONE,
    ) -> None:
        """Create a request that must be answered within `seconds`, admitted at `now` (`perf_counter`).

        `tokens` has the estimated length of each text, by the batcher's estimator.
        """
        loop = asyncio.get_running_loop()
        self.query = query
        self.k = query.hits_per_text
        self.caller = caller
        self.seconds = seconds
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.settled = False  # answered, refused or cancelled, and removed from the queue
        self.arrived = self.begun = now
        self.stages: Stages | None = None
        self.deaths = 0
        self.assign(batcher, tokens)
        self.timer = loop.call_later(seconds, self._on_deadline)
        self.answer.add_done_callback(self._on_answer_done)

    def assign(self, batcher: RequestOwner, tokens: list[int]) -> None:
        """Assign the request to a batcher. With another bundle it starts again; partial answers are dropped."""
        count = len(tokens)
        self.batcher = batcher
        self.tokens = tokens
        self.todo = [(0, count)]  # spans of texts that wait for an engine
        self.next_cost = self.cost(0, min(count, batcher.slice_texts))  # of its next slice, while there is one
        self.parts: list[bytes | None] = [None] * count
        self.answer_bytes = 0  # answered so far
        self.expected_bytes = 0  # of the whole answer, as its batcher counts it
        self.missing = count

    @property
    def bundle(self) -> str:
        """Name of the bundle that answers the whole request."""
        return self.batcher.bundle

    @property
    def texts(self) -> Sequence[str]:
        """Texts of the whole request."""
        return self.query.texts

    def cost(self, start: int, stop: int) -> int:
        """Return the cost of some of its texts: hits plus tokens."""
        return (stop - start) * self.k + sum(self.tokens[start:stop])

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
            self._update_next_cost()
        return start, end

    def put_back(self, start: int, stop: int) -> None:
        """Undo `cut`: the span is sent again before the others."""
        self.todo.insert(0, (start, stop))
        self._update_next_cost()

    def _update_next_cost(self) -> None:
        start, stop = self.todo[0]
        self.next_cost = self.cost(start, min(stop, start + self.batcher.slice_texts))

    def _on_deadline(self) -> None:
        self.batcher.on_deadline(self)

    def _on_answer_done(self, answer: "asyncio.Future[bytes]") -> None:
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
        return (self.stop - self.start) * self.request.k

    def query(self) -> Query:
        """Return the query for the engine."""
        query = self.request.query
        if self.stop - self.start == len(query.texts):
            return query
        return query.with_texts(query.texts[self.start : self.stop])


def length_class(tokens: int) -> int:
    """Return the length class: within a class, lengths differ by less than a factor of two."""
    return max(tokens, SHORT_TOKENS).bit_length()
