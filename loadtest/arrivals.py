"""Arrival times of requests, drawn before the run and independent of the service."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Arrivals = Literal["poisson", "constant"]
CHUNK = 4096  # times converted to Python floats in one call


def arrival_times(rate: float, seconds: float, arrivals: Arrivals, seed: int = 0) -> Iterator[float]:
    """Yield `rate * seconds` ascending times in [0, seconds), in seconds from the start.

    `constant` has equal gaps, `poisson` the gaps of many independent users. Given their number, the arrivals of a
    Poisson process are uniform and independent, so the rate is exact and only the gaps are random.
    """
    count = max(1, round(rate * seconds))
    if arrivals == "constant":
        yield from (number * seconds / count for number in range(count))
        return
    due = np.sort(np.random.default_rng(seed).uniform(0, seconds, count))
    for first in range(0, count, CHUNK):
        yield from due[first : first + CHUNK].tolist()
