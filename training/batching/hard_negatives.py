"""Hard negatives: for each training query, the nearest labels that are not true (ANCE; UniDEC, section 3).

Every query against every label would be the dearest part of a training on many labels. Queries are clustered already,
so only the labels near a cluster are looked at for its queries: docs/decisions/0013 has what that costs and saves.

Shapes: N training queries, B of them in a cluster, K clusters, L labels, P labels near a cluster, D width of the dual
encoder's half, H mined negatives of a query.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.batching.batches import pairs_in_pool
from training.data.ragged import IntArray, Ragged

CLUSTERS_A_LABEL = 32  # for whose queries a label is looked at
SCORES_PER_BLOCK = 1 << 24  # a few clusters and a million labels would need gigabytes at once


def mine_hard_negatives(
    query_ND: NDArray[np.float32],
    label_LD: NDArray[np.float32],
    clusters: Sequence[NDArray[np.int64]],
    not_negative: Ragged,
    count: int,
    progress: Callable[[int, int], object] | None = None,
) -> NDArray[np.int32]:
    """The `count` nearest labels of each query that do not stand in `not_negative` (its true and excluded labels).

    Looked at are the labels to which the query's cluster is one of the CLUSTERS_A_LABEL nearest; with no more clusters
    than that, all of them. `clusters` are rows of `query_ND`, each row in one cluster. Returns [N, count] int32, best
    first; −1 pads a query for which fewer were found.
    """
    mined_NH = np.full((len(query_ND), count), -1, np.int32)
    centre_KD = np.stack([query_ND[rows].mean(axis=0) for rows in clusters])
    near = labels_near(centre_KD, label_LD)
    done = 0
    for rows_B, near_P in zip(clusters, near, strict=True):
        near_PD, some = label_LD[near_P], max(1, SCORES_PER_BLOCK // max(1, len(near_P)))
        for rows in (rows_B[start : start + some] for start in range(0, len(rows_B), some)):
            scores_BP = query_ND[rows] @ near_PD.T
            row, column, _ = pairs_in_pool(not_negative.take(rows), near_P)
            scores_BP[row, column] = -np.inf
            mined_NH[rows] = _best(scores_BP, near_P, count)
        done += len(rows_B)
        if progress is not None:
            progress(done, len(query_ND))
    return mined_NH


def labels_near(centre_KD: NDArray[np.float32], label_LD: NDArray[np.float32]) -> Ragged:
    """For each of K clusters the labels, rising, to which it is one of the nearest few."""
    clusters = len(centre_KD)
    few = min(CLUSTERS_A_LABEL, clusters)
    cluster_LF = np.empty((len(label_LD), few), np.int64)
    some = max(1, SCORES_PER_BLOCK // clusters)
    for start in range(0, len(label_LD), some):
        scores_LK = label_LD[start : start + some] @ centre_KD.T
        cluster_LF[start : start + some] = np.argpartition(scores_LK, clusters - few, axis=1)[:, -few:]
    cluster = cluster_LF.ravel()
    order = np.argsort(cluster, kind="stable")  # which keeps labels rising within a cluster
    return Ragged.from_lengths(order // few, np.bincount(cluster, minlength=clusters))


def _best(scores_BP: NDArray[np.float32], label_P: IntArray, count: int) -> NDArray[np.int32]:
    """Labels of the `count` greatest scores of each row, greatest first; −1 for −∞ and for what is not there."""
    kept = min(count, scores_BP.shape[1])
    best_BH = np.full((len(scores_BP), count), -1, np.int32)
    if not kept:
        return best_BH
    place_BH = np.argpartition(scores_BP, scores_BP.shape[1] - kept, axis=1)[:, -kept:]
    order_BH = np.argsort(-np.take_along_axis(scores_BP, place_BH, axis=1), axis=1, kind="stable")
    place_BH = np.take_along_axis(place_BH, order_BH, axis=1)
    forbidden_BH = np.isneginf(np.take_along_axis(scores_BP, place_BH, axis=1))
    best_BH[:, :kept] = np.where(forbidden_BH, -1, label_P[place_BH])
    return best_BH
