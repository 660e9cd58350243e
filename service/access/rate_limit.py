"""Limit how many texts per second each caller may send."""

import math
from time import monotonic

from service.access.callers import Caller
from service.errors import Refusal, retry_after

MAX_CALLERS = 10_000
SWEEP_SECONDS = 1.0  # between two sweeps of full buckets
BYTES_PER_TEXT = 8192  # of a body; the charge before parsing


class RateLimit:
    """A token bucket per caller: `rate` texts per second in the long run, `burst` texts at once.

    A bucket is stored as the time when it is full again. Full buckets carry no information and are dropped when there
    are too many; buckets that are not full are always kept, which no cache of cachetools does. While too many are not
    full, new callers share one bucket.
    """

    def __init__(self, rate: float, burst: int, max_callers: int = MAX_CALLERS) -> None:
        self._rate = rate
        self._burst = burst
        self._max_callers = max_callers
        self._full_at: dict[Caller, float] = {}
        self._shared_full_at = 0.0
        self._swept_at = -math.inf

    def take(self, caller: Caller, texts: int, now: float | None = None, *, request_texts: int | None = None) -> None:
        """Charge a caller for some texts. Raises Refusal 429 with the time until they fit.

        `request_texts` is the charge of the whole request when `texts` is only the second part of it.
        """
        now = monotonic() if now is None else now
        has_bucket = caller in self._full_at or self._has_room(now)
        full_at = max(self._full_at.get(caller, now) if has_bucket else self._shared_full_at, now)
        missing = (full_at - now) * self._rate
        if missing + texts > self._burst + 1e-6:
            seconds = max(1, math.ceil((missing + (request_texts or texts) - self._burst) / self._rate))
            message = f"This caller may send {self._rate:g} texts per second. Try again in {seconds} s."
            raise Refusal(429, "rate_limited", message, retry_after(seconds))
        full_at += texts / self._rate
        if has_bucket:
            self._full_at[caller] = full_at
        else:
            self._shared_full_at = full_at

    def _has_room(self, now: float) -> bool:
        """Return whether another bucket can be stored; drop full ones if needed."""
        if len(self._full_at) >= self._max_callers and now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._full_at = {caller: full_at for caller, full_at in self._full_at.items() if full_at > now}
        return len(self._full_at) < self._max_callers


def texts_for_bytes(size: int, limit: int) -> int:
    """Return the number of texts charged for a body of `size` bytes before parsing: 1 to `limit`."""
    return min(max(1, -(-size // BYTES_PER_TEXT)), limit)
