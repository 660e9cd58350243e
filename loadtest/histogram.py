"""Durations counted in buckets of 0.1 %: an HDR histogram, as sparse as what it holds."""

from collections.abc import Sequence

MANTISSA = 11  # bits of a duration that are kept: a bucket is at most 1/1024 of its value wide


class Histogram:
    """Durations to three significant digits each, from a nanosecond to days; their mean and maximum are exact."""

    __slots__ = ("_counts", "_total", "count", "most")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0.0
        self.count = 0
        self.most = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration; below zero, as clocks of two machines may have it, is zero."""
        nanoseconds = max(0, int(seconds * 1e9))
        shift = max(0, nanoseconds.bit_length() - MANTISSA)
        bucket = shift << MANTISSA | nanoseconds >> shift
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._total += seconds
        self.count += 1
        self.most = max(self.most, seconds)

    @property
    def mean(self) -> float:
        """Seconds; 0 for an empty one."""
        return self._total / self.count if self.count else 0.0

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Seconds below which each share of the durations lies, `shares` in ascending order; zeros for an empty one."""
        found: list[float] = []
        seen = 0
        buckets = iter(sorted(self._counts.items()))
        seconds = 0.0
        for share in shares:
            while seen < max(1, share * self.count) and (one := next(buckets, None)):
                seen += one[1]
                seconds = min(_middle(one[0]), self.most)
            found.append(seconds)
        return found


def _middle(bucket: int) -> float:
    shift, kept = bucket >> MANTISSA, bucket & (1 << MANTISSA) - 1
    return ((kept << shift) + (1 << shift) / 2) / 1e9
