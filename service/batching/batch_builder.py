"""Build the next batch from the waiting requests."""

from contextlib import closing

from service.batching.fair_queue import FairQueue
from service.batching.pending_request import PendingRequest, RequestSlice, length_class
from service.settings import Settings

MIXED_SECONDS = 1.0  # after a small request, during which large ones leave room
MIXED_PART = 4  # 1/4 of a batch is for large requests while small ones arrive
LARGE_PART = 8  # a request whose next slice costs more than 1/8 of a batch is large
SCAN_LIMIT = 256  # requests that are searched for texts of one length class


class BatchBuilder:
    """Batches bounded in texts, tokens and hits. Small and large requests are not mixed in one batch."""

    def __init__(self, waiting: FairQueue, settings: Settings, padded: bool) -> None:
        """Set up the builder. If the encoder pads batches, all texts of a batch are in one length class."""
        self._waiting = waiting
        self._settings = settings
        self._padded = padded
        self._large_cost = settings.max_batch_hits // LARGE_PART
        self._small_at = -MIXED_SECONDS  # time of the last small request

    def note_arrival(self, request: PendingRequest) -> None:
        """Note when a small request arrived."""
        if not self.is_large(request):
            self._small_at = request.arrived

    def is_large(self, request: PendingRequest) -> bool:
        """Return whether a request's next slice is large."""
        return request.next_cost > self._large_cost

    def small_arrived_recently(self, now: float) -> bool:
        """Return whether small requests arrived recently, so that large ones must leave room."""
        return now - self._small_at < MIXED_SECONDS

    def next_batch(self, now: float) -> list[RequestSlice]:
        """Return a slice of each request in turn until the batch is full. Empty when nothing waits."""
        first = self._waiting.first()
        if first is None:
            return []
        length = length_class(first.tokens[first.todo[0][0]]) if self._padded else None
        batch: list[RequestSlice] = []
        settings = self._settings
        texts, tokens, hits = settings.max_batch_queries, settings.max_batch_tokens, settings.max_batch_hits
        is_large = self.is_large(first)
        if is_large and self.small_arrived_recently(now):
            hits //= MIXED_PART
        with closing(self._waiting.in_order(SCAN_LIMIT)) as requests:
            for request in requests:
                if batch and (request.deaths or self.is_large(request) != is_large):
                    break
                start, stop = self._cut(request, min(texts, hits // request.k), tokens, length, not batch)
                if start == stop and length is None:
                    break
                if start == stop:
                    continue
                batch.append(RequestSlice(request, start, stop))
                tokens -= self._waiting.mark_sent(request, start, stop)
                texts -= stop - start
                hits -= (stop - start) * request.k
                if request.deaths or not texts:
                    break
        return batch

    def _cut(
        self, request: PendingRequest, texts: int, tokens: int, length: int | None, is_first: bool
    ) -> tuple[int, int]:
        """Cut a request's next span; the first text of a batch always fits."""
        limit = 1 if request.deaths else self._settings.max_slice_queries
        start, stop = request.cut(min(texts, limit), tokens, length)
        if start == stop and is_first:
            return request.cut(1, request.tokens[start])  # a text larger than a batch is sent alone
        return start, stop
