"""Refuse small requests before the application reads them, while the queue is full.

Under three times the load that can be answered, refusing must cost a fraction of answering.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from service import errors
from service.access.client_address import ClientAddresses
from service.connections.direct_responses import CLOSE, common_headers, response_head
from service.http import paths
from service.http.body_limits import UNCHECKED_BYTES
from service.observe.metrics import Metrics
from service.request_context import RequestContext, request_id
from service.settings import Settings

WAITING = "as many texts as can be answered soon"
Headers = Sequence[tuple[bytes, bytes]]


class EarlyRefusals:
    """Decide which requests are refused early, and build the responses. Only the counters record such a request."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        queue_is_full: Callable[[], bool],
        is_refused: Callable[[RequestContext], bool],
    ) -> None:
        """Set up the responses.

        `is_refused` returns whether the caller of a request has used its share of the queue, which is full.
        """
        # a response without the application has no log line and no CORS headers
        self._queue_is_full = _never if settings.log_requests == "all" or settings.origins else queue_is_full
        self._is_refused = is_refused
        self._resolve_address = ClientAddresses(settings.trusted_proxies).of
        # built in advance, one per Retry-After value, used in turn
        refusals = [errors.overloaded(WAITING, seconds) for seconds in range(1, errors.longest_retry() + 1)]
        self.refusal = refusals[0]
        self._heads = cycle([response_head(refusal) for refusal in refusals])
        self._body = bytes(self.refusal.response().body)
        self._metrics = metrics
        self._count = metrics.rejections.labels("queue_full")

    def apply_to(self, headers: Headers, client: Any, length: int, is_chunked: bool) -> bool:
        """Return whether to refuse a small request to /predict, from its headers: its caller has used its share."""
        if not self._queue_is_full() or is_chunked or length > UNCHECKED_BYTES:
            return False
        scope = {"path": paths.PREDICT, "headers": headers, "client": client}
        return self._is_refused(RequestContext(scope, paths.PREDICT, self._resolve_address))

    def response(self, headers: Headers, seconds: float, keep_alive: bool) -> bytes:
        """Count a request that is refused `seconds` after it began; return the whole response."""
        self._count.inc()
        self._metrics.count_response(paths.PREDICT, 429)
        head = next(self._heads) + common_headers(request_id(dict(headers)), seconds)
        return head + (b"\r\n" if keep_alive else CLOSE) + self._body


def _never() -> bool:
    return False
