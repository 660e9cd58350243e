"""Charge callers for filters, whose cost no estimate covers."""

from collections.abc import Sequence

from service.batching.fair_queue import FairQueue
from service.batching.pending_request import RequestSlice

SMOOTHING = 0.05  # weight of the last batch in the moving average of the engine's speed


class FilterCharges:
    """The cost per second of batches without filters, and charges for batches with filters that took longer."""

    def __init__(self, waiting: FairQueue) -> None:
        self._waiting = waiting
        self._cost_per_second = 0.0  # of batches without filters

    def charge(self, batch: Sequence[RequestSlice], seconds: float) -> None:
        """Charge the callers with filters for the seconds that a batch took beyond its estimated cost."""
        cost = sum(span.request.cost(span.start, span.stop) for span in batch)
        filtered = [span.request.caller for span in batch if span.request.query.filter_json]
        if not filtered:
            rate = cost / max(seconds, 1e-6)
            self._cost_per_second += (rate - self._cost_per_second) * (SMOOTHING if self._cost_per_second else 1)
        elif (excess := seconds * self._cost_per_second - cost) > 0:
            for caller in filtered:
                self._waiting.surcharge(caller, excess / len(filtered))
