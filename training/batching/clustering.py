"""Balanced recursive 2-means: which queries share a batch (UniDEC, section 3; as in NGAME).

Queries of one cluster are each other's hard negatives: their labels meet in one pool.
Shapes: N queries, D their width, B queries of one node.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def balanced_clusters(
    vectors_ND: NDArray[np.float32], largest: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Split N queries into 2^⌈log2(N/largest)⌉ clusters of equal size (to one), none above `largest`.

    Returns rows of `vectors_ND`, one int64 array a cluster; together they are a permutation of all rows.
    """
    count = len(vectors_ND)
    depth = max(0, math.ceil(math.log2(count / largest))) if count else 0
    return list(_split(vectors_ND, np.arange(count), depth, generator))


def random_clusters(count: int, largest: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """The ablation: as many batches of the same sizes, filled at random."""
    depth = max(0, math.ceil(math.log2(count / largest))) if count else 0
    return [np.sort(rows) for rows in np.array_split(generator.permutation(count), 2**depth)]


def _split(
    vectors_ND: NDArray[np.float32], rows_B: NDArray[np.int64], depth: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    if depth == 0:
        yield rows_B
        return
    left_B, right_B = _two_means(vectors_ND[rows_B], generator)
    yield from _split(vectors_ND, rows_B[left_B], depth - 1, generator)
    yield from _split(vectors_ND, rows_B[right_B], depth - 1, generator)


def _two_means(
    vectors_BD: NDArray[np.float32], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two halves of equal size: the points are ranked by how much nearer one centre is, and cut in the middle."""
    half = len(vectors_BD) // 2
    first, second = generator.choice(len(vectors_BD), size=2, replace=False)
    direction_D = vectors_BD[first] - vectors_BD[second]
    order_B = np.argsort(vectors_BD @ direction_D, kind="stable")
    for _ in range(ROUNDS):
        centre_D = vectors_BD[order_B[half:]].mean(axis=0) - vectors_BD[order_B[:half]].mean(axis=0)
        again_B = np.argsort(vectors_BD @ centre_D, kind="stable")
        if np.array_equal(again_B[:half], order_B[:half]):
            break
        order_B = again_B
    return np.sort(order_B[:half]), np.sort(order_B[half:])
