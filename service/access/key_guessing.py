"""Slow down the guessing of keys: after several wrong keys, an address waits longer before each attempt."""

import math
from collections.abc import Callable
from time import monotonic

from cachetools import FIFOCache

from service.access.callers import network_of
from service.errors import Refusal

FREE_ATTEMPTS = 10  # wrong keys before the first wait
LONGEST_WAIT_SECONDS = 300.0
FORGET_SECONDS = 3600.0  # without a wrong key, after which the count starts again
# Bounds the memory; addresses that share a bucket share their waits. A bounded map of cachetools would evict an address
# that has to wait.
BUCKETS = 1 << 16
MAX_ACCEPTED = 10_000  # pairs of address and key


class GuessLimit:
    """Wrong keys per address: IPv4 address or IPv6 /64 network.

    A key that was accepted from an address before never waits there, so that clients that share an address with a
    guesser, for example behind a proxy, are not locked out. Every other key waits, right or wrong.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._wrong: dict[int, tuple[int, float]] = {}  # bucket → number of wrong keys, time of the last one
        self._accepted: FIFOCache[tuple[str, str], None] = FIFOCache(MAX_ACCEPTED)

    def knows(self, address: str, name: str) -> bool:
        """Return whether this key was accepted from this address before."""
        return (address, name) in self._accepted

    def remember(self, address: str, name: str) -> None:
        """Note that this key was accepted from this address."""
        self._accepted[address, name] = None

    def admit(self, address: str) -> None:
        """Admit an attempt. Raises Refusal 429 while the address has to wait."""
        count, last = self._wrong.get(_bucket(address), (0, 0.0))
        left = last + _wait_seconds(count) - self._clock()
        if count and left > 0:
            seconds = math.ceil(left)
            message = f"Too many wrong keys came from this address. Try again in {seconds} s."
            raise Refusal(429, "too_many_wrong_keys", message, {"Retry-After": str(seconds)})

    def wrong(self, address: str) -> None:
        """Count a wrong key."""
        bucket, now = _bucket(address), self._clock()
        count, last = self._wrong.get(bucket, (0, now))
        self._wrong[bucket] = (1 if now - last > FORGET_SECONDS else count + 1, now)


def _bucket(address: str) -> int:
    return hash(network_of(address)) % BUCKETS  # randomized per process


def _wait_seconds(count: int) -> float:
    if count < FREE_ATTEMPTS:
        return 0.0
    return min(2.0 ** min(count - FREE_ATTEMPTS, 32), LONGEST_WAIT_SECONDS)
