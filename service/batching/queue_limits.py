"""Bound the queue of an engine: texts, tokens, and bytes of incomplete answers."""

from service.access.callers import Caller
from service.batching.fair_queue import FairQueue
from service.batching.pending_request import PendingRequest
from service.batching.throughput import ThroughputEstimate
from service.settings import Settings

BYTES_PER_HIT = 200.0  # of an answer, before the first measurement
SMOOTHING = 0.05  # weight of the last batch in the moving average of the bytes per hit
ANSWERS_PART = 8  # 1/8 of the memory of all connections is for answers that are not complete
SMALL_ANSWER_PART = 64  # a small answer takes at most 1/64 of it


class QueueLimits:
    """The limits of one queue, and its present size."""

    def __init__(self, waiting: FairQueue, settings: Settings) -> None:
        self._waiting = waiting
        self._settings = settings
        self._throughput = ThroughputEstimate()
        self._max_texts = settings.max_waiting_queries  # texts that may wait at the engine's throughput
        self._requests = 0  # unfinished requests
        self._answer_bytes = 0  # bytes of their answers: the expected size, or the received size if it is larger
        self._bytes_per_hit = BYTES_PER_HIT

    @property
    def full(self) -> bool:
        """Whether no more texts may wait."""
        return self._waiting.texts >= self._max_texts

    def is_within_share(self, caller: Caller, places: float) -> bool:
        """Return whether a caller stays within its share of the queue with `places` more places."""
        present = self._waiting.places_of(caller)
        return present + places <= self._max_texts / (self._waiting.callers + (not present))

    def exceeded(self, texts: int, tokens: int = 0, hits: int = 0, times: int = 1) -> str:
        """Return what waits when a request does not fit into `times` the limits; empty when it fits."""
        waiting, settings = self._waiting, self._settings
        if waiting.texts + texts > times * self._max_texts:
            return f"{waiting.texts} texts"
        if waiting and waiting.tokens + tokens > times * settings.max_waiting_tokens:
            return f"{waiting.tokens} tokens"
        size, limit = int(hits * self._bytes_per_hit), times * settings.connection_bytes // ANSWERS_PART
        if times > 1 and size <= limit // SMALL_ANSWER_PART:
            limit *= 2  # a single large answer may take all of it, and leaves room for small ones
        if self._requests and self._answer_bytes + size > limit:
            return f"answers of {self._answer_bytes} bytes"
        return ""

    def add_answer(self, request: PendingRequest) -> None:
        """Count the answer of a request."""
        self._requests += 1
        request.expected_bytes = int(len(request.tokens) * request.k * self._bytes_per_hit)
        self._answer_bytes += request.expected_bytes

    def count_received(self, request: PendingRequest) -> None:
        """Count the bytes of a partial answer that exceed the expected size."""
        if (excess := request.answer_bytes - request.expected_bytes) > 0:
            self._answer_bytes += excess
            request.expected_bytes += excess

    def remove_answer(self, request: PendingRequest) -> None:
        """Stop counting the answer of a request."""
        self._requests -= 1
        self._answer_bytes -= request.expected_bytes

    def update_bytes_per_hit(self, size: int, hits: int) -> None:
        """Update the bytes per hit from a batch of `hits` hits whose answers have `size` bytes."""
        self._bytes_per_hit += (size / hits - self._bytes_per_hit) * SMOOTHING

    def update_throughput(self, texts: int, now: float) -> None:
        """Update the engine's throughput from a batch that was answered at `now`, in seconds."""
        if self._throughput.update(texts, bool(self._waiting), now):
            self._update_max_texts()

    def reset_throughput(self) -> None:
        """Forget the engine's throughput: the engine is gone."""
        self._throughput.reset()
        self._update_max_texts()

    def _update_max_texts(self) -> None:
        """Set the size of the queue: the texts answered within `max_waiting_seconds`, at least the largest request."""
        settings = self._settings
        limit = settings.max_waiting_queries
        if (rate := self._throughput.texts_per_second) is not None:
            limit = min(limit, max(round(rate * settings.max_waiting_seconds), settings.max_queries))
        self._max_texts = limit
