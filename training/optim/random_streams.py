"""Random numbers as a function of (seed, stream, counters).

No generator carries state from step to step. A run that resumes from any saved state therefore draws the same numbers
as an uninterrupted run, and so does each process of a distributed run.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Uses of random numbers; each has its own stream."""

    CLUSTERS = 0
    ORDER = 1
    BATCH = 2
    DROPOUT = 3
    LABEL_QUERIES = 4
    LABEL_TREE = 5


def random_generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """Return a new generator for one stream at given counters, such as epoch and step."""
    return np.random.default_rng([seed, int(stream), *counters])
