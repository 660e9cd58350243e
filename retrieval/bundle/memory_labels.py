"""The settings of the query memory, and the weighted labels of its training queries. Needs NumPy only.

Suffixes: M training queries, V labels of all of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_NEIGHBOURS = 64
MAX_MEMORY_WEIGHT = 10.0  # of γ
MAX_LABELS_PER_QUERY = 128  # bounds the labels that one search compares, together with MAX_NEIGHBOURS


class VoteSettings(NamedTuple):
    """γ, the weight of the votes in the score; τ, the temperature; and the number of neighbours."""

    weight: float
    temperature: float
    neighbours: int


NO_VOTES = VoteSettings(0.0, 1.0, 1)


@dataclass(frozen=True, eq=False)
class MemoryLabels:
    """The labels of M training queries: those of query m are `label_V[starts_M1[m]:starts_M1[m + 1]]`.

    `weight_V` in (0, 1] is parallel to `label_V`. A query has no label twice.
    """

    starts_M1: NDArray[np.int64]
    label_V: NDArray[np.int32]
    weight_V: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts_M1) - 1
