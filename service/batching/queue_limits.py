"""Bound what may wait for an engine: texts, tokens, and bytes of answers that are not complete."""

from service.access.callers import Caller
from service.batching.fair_queue import FairQueue
from service.batching.pending_request import PendingRequest
from service.batching.throughput import Pace
from service.settings import Settings

BYTES_PER_HIT = 200.0  # of an answer, until some were answered
SMOOTHING = 0.05  # weight of the last batch in the moving average of the bytes per hit
ANSWERS_PART = 8  # 1/8 of the memory of all connections is for answers that are not complete
SMALL_ANSWER = 64  # a small answer takes at most 1/64 of it


class QueueLimits:
    """The limits of one queue, and what counts towards them."""

    def __init__(self, waiting: FairQueue, settings: Settings) -> None:
        self._waiting = waiting
        self._settings = settings
        self._pace = Pace()
        self._room = settings.max_waiting_queries  # texts that may wait at the engine's throughput
        self._requests = 0  # not finished
        self._answer_bytes = 0  # of their answers: expected, or received where that is more
        self._bytes_per_hit = BYTES_PER_HIT

    @property
    def full(self) -> bool:
        """Whether no more texts may wait."""
        return self._waiting.texts >= self._room

    def leaves_share(self, caller: Caller, places: float) -> bool:
        """Return whether a caller stays within its share of the queue with `places` more places."""
        mine = self._waiting.places_of(caller)
        return mine + places <= self._room / (self._waiting.callers + (not mine))

    def exceeded(self, texts: int, tokens: int = 0, hits: int = 0, times: int = 1) -> str:
        """Return what waits when a request does not fit into `times` the limits; empty when it fits."""
        waiting, settings = self._waiting, self._settings
        if waiting.texts + texts > times * self._room:
            return f"{waiting.texts} texts"
        if waiting and waiting.tokens + tokens > times * settings.max_waiting_tokens:
            return f"{waiting.tokens} tokens"
        size, most = int(hits * self._bytes_per_hit), times * settings.connection_bytes // ANSWERS_PART
        if times > 1 and size <= most // SMALL_ANSWER:
            most *= 2  # a single large answer may take all of it, and leaves room for small ones
        if self._requests and self._answer_bytes + size > most:
            return f"answers of {self._answer_bytes} bytes"
        return ""

    def begin(self, request: PendingRequest) -> None:
        """Count the answer of a request."""
        self._requests += 1
        request.expected_bytes = int(len(request.tokens) * request.asked.k * self._bytes_per_hit)
        self._answer_bytes += request.expected_bytes

    def received(self, request: PendingRequest) -> None:
        """Count the bytes that a request has received, where they are more than expected."""
        if (excess := request.answer_bytes - request.expected_bytes) > 0:
            self._answer_bytes += excess
            request.expected_bytes += excess

    def end(self, request: PendingRequest) -> None:
        """Forget the answer of a request."""
        self._requests -= 1
        self._answer_bytes -= request.expected_bytes

    def measured(self, size: int, hits: int) -> None:
        """Update the bytes per hit from a batch of `hits` hits whose answers have `size` bytes."""
        self._bytes_per_hit += (size / hits - self._bytes_per_hit) * SMOOTHING

    def answered(self, texts: int, now: float) -> None:
        """Update the engine's throughput from a batch that was answered at `now`, in seconds."""
        if self._pace.answered(texts, bool(self._waiting), now):
            self._set_room()

    def lose_pace(self) -> None:
        """Forget the engine's throughput."""
        self._pace.forget()
        self._set_room()

    def _set_room(self) -> None:
        """Set the size of the queue: the texts answered within `max_waiting_seconds`, at least the largest request."""
        settings = self._settings
        room = settings.max_waiting_queries
        if self._pace.rate is not None:
            room = min(room, max(round(self._pace.rate * settings.max_waiting_seconds), settings.max_queries))
        self._room = room
