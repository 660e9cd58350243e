"""Balanced clusters by recursive 2-means: of queries for batches (UniDEC, section 3; NGAME), of labels for a tree.

The queries of a cluster provide hard negatives for each other, because their labels share one pool.
Shapes: N queries or labels, D width of their vectors, B members of one node.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 8  # of 2-means, at most
Vectors = Any  # float32 [N, D], an array or a scipy.sparse.csr_array


def balanced_clusters(
    vectors_ND: NDArray[np.float32], batch_size: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Split N queries into 2^⌈log2(N/batch_size)⌉ clusters whose sizes differ by at most one.

    Returns the rows of each cluster, int64. Every row is in one cluster.
    """
    return halve(vectors_ND, _depth(len(vectors_ND), batch_size), generator)


def halve(vectors_ND: Vectors, depth: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Halve N rows `depth` times; return the rows of each of the 2^depth clusters, whose sizes differ by at most one.

    Clusters that were one before the last halving are neighbours in the list.
    """
    return list(_split(vectors_ND, np.arange(vectors_ND.shape[0]), depth, generator))


def random_clusters(count: int, batch_size: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Split `count` queries at random into as many clusters of the same sizes as `balanced_clusters`."""
    return [np.sort(rows) for rows in np.array_split(generator.permutation(count), 2 ** _depth(count, batch_size))]


def _depth(count: int, batch_size: int) -> int:
    """Return how often `count` queries must be halved to fit into batches."""
    return max(0, math.ceil(math.log2(count / batch_size))) if count else 0


def _split(
    vectors_ND: Vectors, rows_B: NDArray[np.int64], depth: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    if depth == 0:
        yield rows_B
        return
    left_B, right_B = _two_means(vectors_ND[rows_B], generator)
    yield from _split(vectors_ND, rows_B[left_B], depth - 1, generator)
    yield from _split(vectors_ND, rows_B[right_B], depth - 1, generator)


def _two_means(vectors_BD: Vectors, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two halves: points are sorted by the difference of their scores with the two centres and cut in half."""
    half = vectors_BD.shape[0] // 2
    first, second = generator.choice(vectors_BD.shape[0], size=2, replace=False)
    direction_D = vectors_BD[[first]].mean(axis=0) - vectors_BD[[second]].mean(axis=0)
    order_B = np.argsort(vectors_BD @ direction_D, kind="stable")
    for _ in range(ITERATIONS):
        centre_D = vectors_BD[order_B[half:]].mean(axis=0) - vectors_BD[order_B[:half]].mean(axis=0)
        again_B = np.argsort(vectors_BD @ centre_D, kind="stable")
        if np.array_equal(again_B[:half], order_B[:half]):
            break
        order_B = again_B
    return np.sort(order_B[:half]), np.sort(order_B[half:])
