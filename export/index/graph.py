"""Choose the links per node and the candidates per insertion, by building graphs of samples.

The ef_search that a graph needs grows with the number of nodes. It is measured for two sample sizes, and extrapolated
as a power of the size, which is cautious: it grows more slowly in large graphs.

Suffixes: Q queries, N nodes, S nodes of a sample, W width of the projection, K results.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.index.recall import EF_LADDER, RECALL_TARGET, recall_at, smallest_ef
from retrieval.bundle.facts import SMALL_K
from retrieval.search.indexes import ExactIndex, HnswIndex, Vectors
from retrieval.system.progress import Progress

SAMPLE = 20_000  # nodes of the larger sample
SHARE = 8  # the smaller sample has an eighth of them
EF_WANTED = 256  # at the default weight
SEED = 1


class GraphChoice(NamedTuple):
    """Links per node, and candidates examined when a node is linked."""

    m: int
    ef_construction: int


# Each takes more memory or more time to build than the one before it.
CHOICES = (GraphChoice(16, 200), GraphChoice(24, 200), GraphChoice(32, 200), GraphChoice(32, 400),
           GraphChoice(48, 400))  # fmt: skip


def sample_nodes(size: int) -> NDArray[np.int64]:
    """Return at most SAMPLE of the rows 0 to `size` − 1, drawn at random and ascending."""
    return np.sort(np.random.default_rng(SEED).permutation(size)[:SAMPLE])


def choose_graph(
    sample_SW: Vectors, size: int, query_QW: Vectors, m: int | None, ef_construction: int | None, threads: int | None,
    progress: Progress,
) -> GraphChoice:  # fmt: skip
    """Return the first settings whose extrapolated ef_search is small enough, else those with the smallest.

    The graph will have `size` nodes; `sample_SW` are those of `sample_nodes`. `m` and `ef_construction` restrict the
    choice if they are given.
    """
    choices = list(dict.fromkeys(GraphChoice(m or one.m, ef_construction or one.ef_construction) for one in CHOICES))
    predicted: dict[GraphChoice, float] = {}
    for done, choice in enumerate(choices):
        if len(choices) == 1:
            return choice
        predicted[choice] = predicted_ef(sample_SW, size, query_QW, choice, threads)
        progress(done + 1, len(choices))
        if predicted[choice] <= EF_WANTED:
            return choice
    return min(predicted, key=lambda choice: predicted[choice])


def predicted_ef(sample_SW: Vectors, size: int, query_QW: Vectors, choice: GraphChoice, threads: int | None) -> float:
    """Return the ef_search that a graph of `size` nodes needs for the recall target, extrapolated from samples."""
    large = ef_of_sample(sample_SW, query_QW, choice, threads)
    if len(sample_SW) == size:
        return large
    small = ef_of_sample(sample_SW[::SHARE], query_QW, choice, threads)
    growth = max(math.log(large / small) / math.log(SHARE), 0.0)
    return float(large * (size / len(sample_SW)) ** growth)


def ef_of_sample(sample_SW: Vectors, query_QW: Vectors, choice: GraphChoice, threads: int | None) -> int:
    """Return the smallest ef_search with which a graph of a sample finds its 10 nearest vectors."""
    best_QK = ExactIndex(sample_SW, threads).search(query_QW, SMALL_K)[1]
    graph = HnswIndex.build(sample_SW, m=choice.m, ef_construction=choice.ef_construction, threads=threads)

    def suffices(ef: int) -> bool:
        return recall_at(SMALL_K, graph.search(query_QW, max(ef, SMALL_K))[1][:, :SMALL_K], best_QK) >= RECALL_TARGET

    try:
        return smallest_ef(EF_LADDER, len(sample_SW), suffices)
    finally:
        graph.close()
