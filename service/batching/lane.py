"""The batches in flight at one engine."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain, islice

from service.batching.pending_request import PendingRequest, RequestSlice


class Lane:
    """One engine as its batcher sees it. Engines of one batcher take batches from the same queue."""

    def __init__(self) -> None:
        self.send: Callable[[bytes], None] | None = None  # None while there is no engine
        self.worker_threads = 1  # of the engine: batches that it answers in parallel
        self.in_flight: OrderedDict[int, list[RequestSlice]] = OrderedDict()  # batch number → slices, the oldest first
        self.texts = 0  # in flight

    @property
    def oldest(self) -> int | None:
        """Number of the oldest batch in flight; None when there is none."""
        return next(iter(self.in_flight), None)

    @property
    def last(self) -> list[RequestSlice]:
        """The batch that was sent last, of those in flight."""
        return next(reversed(self.in_flight.values()))

    def add(self, number: int, batch: list[RequestSlice]) -> None:
        """Note that a batch was sent."""
        self.in_flight[number] = batch
        self.texts += count_texts(batch)

    def take(self, number: int, answers: int) -> list[RequestSlice]:
        """Remove and return a batch that was answered. Raises ValueError for a batch that is not due."""
        due = list(islice(self.in_flight, self.worker_threads))
        if number not in due or answers != len(self.in_flight[number]):
            expected = " or ".join(map(str, due)) or "none"
            raise ValueError(f"the engine answered batch {number}; expected {expected}")
        batch = self.in_flight.pop(number)
        self.texts -= count_texts(batch)
        return batch

    def in_progress(self) -> dict[PendingRequest, RequestSlice]:
        """Return the slices that the engine may be answering, by request: those of the oldest batch of each thread."""
        batches = islice(self.in_flight.values(), self.worker_threads)
        return {span.request: span for span in chain.from_iterable(batches)}

    def clear(self) -> None:
        """Forget all batches."""
        self.in_flight.clear()
        self.texts = 0


def count_texts(batch: Sequence[RequestSlice]) -> int:
    """Return the number of texts of a batch."""
    return sum(span.stop - span.start for span in batch)
