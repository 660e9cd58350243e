"""Slow down who guesses keys: after several wrong ones an address waits before its next attempt, longer each time."""

import math
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from service.callers import network_of
from service.errors import Refusal

FREE_ATTEMPTS = 10  # wrong keys before the first wait
LONGEST_WAIT_SECONDS = 300.0
FORGET_SECONDS = 3600.0  # without a wrong key, until an address may try freely again
BUCKETS = 1 << 16  # bounds the memory; an address that shares a bucket with another one shares its waits
REMEMBERED_RIGHT = 10_000  # pairs of address and key


class GuessLimit:
    """Wrong keys by network address: IPv4 whole, IPv6 by /64.

    A key that this address has used rightly before is never made to wait: who shares an address with a guesser, behind
    a proxy for example, is not locked out. Any other key, right or wrong, waits, or guessing would not be slowed.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._wrong: dict[int, tuple[int, float]] = {}  # by bucket: wrong keys, and when the last one came
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()

    def knows(self, address: str, name: str) -> bool:
        """Return whether the key of this name has come from this address before."""
        return (address, name) in self._right

    def remember(self, address: str, name: str) -> None:
        """Remember that the key of this name has come from this address."""
        self._right[address, name] = None
        if len(self._right) > REMEMBERED_RIGHT:
            self._right.popitem(last=False)

    def admit(self, address: str) -> None:
        """Let an attempt through. Raises Refusal 429 while the address has to wait."""
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
    return hash(network_of(address)) % BUCKETS  # of a text, it differs from process to process


def _wait_seconds(count: int) -> float:
    if count < FREE_ATTEMPTS:
        return 0.0
    return min(2.0 ** min(count - FREE_ATTEMPTS, 32), LONGEST_WAIT_SECONDS)
