"""When requests are due: a schedule that is drawn beforehand and never looks at the service."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Arrivals = Literal["poisson", "constant"]
PART = 4096  # moments made into Python numbers at a time


def schedule(rate: float, seconds: float, arrivals: Arrivals, seed: int = 0) -> Iterator[float]:
    """Seconds from the start at which requests are due, in order: `rate * seconds` of them, the last before `seconds`.

    `constant` has equal gaps; `poisson` has those of many independent users: given how many there are, the arrivals of
    a Poisson process are spread evenly and independently, so the rate is exact and only the bunching is chance.
    """
    count = max(1, round(rate * seconds))
    if arrivals == "constant":
        yield from (number * seconds / count for number in range(count))
        return
    due = np.sort(np.random.default_rng(seed).uniform(0, seconds, count))
    for first in range(0, count, PART):
        yield from due[first : first + PART].tolist()
