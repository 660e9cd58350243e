"""Hard negatives: the nearest labels of each training query that are not true (ANCE; UniDEC, section 3).

Scoring every query with every label would be the most expensive part of training with many labels. Therefore only the
labels near a cluster are candidates for its queries (docs/decisions/0013).

Shapes: N training queries, B queries of a cluster, K clusters, L labels, P candidate labels of a cluster, D width of
the dual encoder's vectors, H hard negatives per query, F nearest clusters per label.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.system.progress import Progress, no_progress
from training.batching.batches import pairs_in_pool
from training.data.ragged import IntArray, Ragged

CLUSTERS_PER_LABEL = 32  # nearest clusters, for whose queries a label is a candidate
SCORES_PER_BLOCK = 1 << 24  # bounds the memory for scores; a million labels would need gigabytes


def mine_hard_negatives(
    query_ND: NDArray[np.float32],
    label_LD: NDArray[np.float32],
    clusters: Sequence[NDArray[np.int64]],
    near: Ragged,
    not_negative: Ragged,
    count: int,
    progress: Progress = no_progress,
) -> NDArray[np.int32]:
    """Return the `count` nearest labels per query that are not in `not_negative` (true and excluded labels).

    `clusters` are rows of `query_ND`; `near` are the candidate labels of each, from `labels_near`. Returns int32
    [N, count], nearest first, padded with −1; all −1 for rows in no cluster.
    """
    mined_NH = np.full((len(query_ND), count), -1, np.int32)
    done, total = 0, sum(map(len, clusters))
    for rows_B, near_P in zip(clusters, near, strict=True):
        near_PD, step = label_LD[near_P], max(1, SCORES_PER_BLOCK // max(1, len(near_P)))
        for rows in (rows_B[start : start + step] for start in range(0, len(rows_B), step)):
            scores_BP = query_ND[rows] @ near_PD.T
            row, column, _ = pairs_in_pool(not_negative.take(rows), near_P)
            scores_BP[row, column] = -np.inf
            mined_NH[rows] = _best(scores_BP, near_P, count)
        done += len(rows_B)
        progress(done, total)
    return mined_NH


def cluster_centres(query_ND: NDArray[np.float32], clusters: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Return the mean vector of each cluster [K, D]."""
    return np.stack([query_ND[rows].mean(axis=0) for rows in clusters])


def nearest_clusters(centre_KD: NDArray[np.float32], label_LD: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the F clusters nearest to each label, int32 [L, F]: it is a candidate for their queries."""
    clusters = len(centre_KD)
    nearest = min(CLUSTERS_PER_LABEL, clusters)
    cluster_LF = np.empty((len(label_LD), nearest), np.int32)
    step = max(1, SCORES_PER_BLOCK // clusters)
    for start in range(0, len(label_LD), step):
        scores_LK = label_LD[start : start + step] @ centre_KD.T
        cluster_LF[start : start + step] = np.argpartition(scores_LK, clusters - nearest, axis=1)[:, -nearest:]
    return cluster_LF


def labels_near(cluster_LF: NDArray[np.integer[Any]], clusters: int, first: int = 0, step: int = 1) -> Ragged:
    """Return the labels near each of `clusters` clusters, ascending; with a step, only of every `step`-th cluster."""
    cluster_M, nearest = cluster_LF.ravel(), cluster_LF.shape[1]
    chosen_M = np.flatnonzero(cluster_M % step == first) if step > 1 else np.arange(len(cluster_M))
    place_M = cluster_M[chosen_M] // step
    order_M = np.argsort(place_M, kind="stable")  # keeps labels ascending within a cluster
    counts_K = np.bincount(place_M, minlength=len(range(first, clusters, step)))
    return Ragged.from_lengths(chosen_M[order_M] // nearest, counts_K)


def _best(scores_BP: NDArray[np.float32], label_P: IntArray, count: int) -> NDArray[np.int32]:
    """Return the labels of the `count` greatest scores per row, greatest first; −1 for scores of −∞ and for padding."""
    n = min(count, scores_BP.shape[1])
    best_BH = np.full((len(scores_BP), count), -1, np.int32)
    if not n:
        return best_BH
    column_BH = np.argpartition(scores_BP, scores_BP.shape[1] - n, axis=1)[:, -n:]
    order_BH = np.argsort(-np.take_along_axis(scores_BP, column_BH, axis=1), axis=1, kind="stable")
    column_BH = np.take_along_axis(column_BH, order_BH, axis=1)
    forbidden_BH = np.isneginf(np.take_along_axis(scores_BP, column_BH, axis=1))
    best_BH[:, :n] = np.where(forbidden_BH, -1, label_P[column_BH])
    return best_BH
