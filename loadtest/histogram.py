"""An HDR histogram of durations, stored sparsely.

Hand-written: PyPI's hdrhistogram is no faster, takes 190 kB per histogram, and needs setuptools (decision 0043).
"""

from collections.abc import Sequence

MANTISSA_BITS = 11  # precision of a bucket: its width is at most 1/1024 of its value


class Histogram:
    """Durations with three significant digits, from a nanosecond to days; mean and maximum are exact."""

    __slots__ = ("_counts", "_total", "count", "max")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0.0
        self.count = 0
        self.max = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration. A negative one, from clocks of two machines, counts as zero."""
        nanoseconds = max(0, int(seconds * 1e9))
        shift = max(0, nanoseconds.bit_length() - MANTISSA_BITS)
        bucket = shift << MANTISSA_BITS | nanoseconds >> shift
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._total += seconds
        self.count += 1
        self.max = max(self.max, seconds)

    @property
    def mean(self) -> float:
        """Mean in seconds; 0 if the histogram is empty."""
        return self._total / self.count if self.count else 0.0

    def quantiles(self, fractions: Sequence[float]) -> list[float]:
        """Return the quantiles, in seconds, of ascending `fractions`; zeros if the histogram is empty."""
        quantiles: list[float] = []
        seen, seconds = 0, 0.0
        buckets = iter(sorted(self._counts.items()))
        for fraction in fractions:
            while seen < max(1, fraction * self.count) and (bucket := next(buckets, None)):
                seen += bucket[1]
                seconds = min(_middle(bucket[0]), self.max)
            quantiles.append(seconds)
        return quantiles


def _middle(bucket: int) -> float:
    shift, mantissa = bucket >> MANTISSA_BITS, bucket & (1 << MANTISSA_BITS) - 1
    return ((mantissa << shift) + (1 << shift) / 2) / 1e9
