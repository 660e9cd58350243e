"""Choose the training queries of the query memory, and weight their labels.

Shapes: R training queries, V true labels of all of them, M queries of the memory.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.memory_labels import MAX_LABELS_PER_QUERY, MemoryLabels
from training.data.clicks import click_shares
from training.data.split import Split

SEED = 0


class MemoryQueries(NamedTuple):
    """The training queries of the memory, and the row of each in the training split [M]."""

    queries: Split
    row_M: NDArray[np.int64]


def memory_queries(train: Split, max_queries: int) -> MemoryQueries | None:
    """Return up to `max_queries` of the training queries that have a label, the most useful ones, in their order.

    Each keeps its MAX_LABELS_PER_QUERY labels of the greatest weight. None if there is no query, or for the limit 0.
    """
    rows_M = np.flatnonzero(train.labels.lengths > 0)
    if len(rows_M) > max_queries > 0:
        usefulness_M = usefulness(train)[rows_M]
        rows_M = np.sort(rows_M[np.argsort(-usefulness_M, kind="stable")[:max_queries]])
    return MemoryQueries(_with_strongest_labels(train.take(rows_M)), rows_M) if max_queries and len(rows_M) else None


def usefulness(train: Split) -> NDArray[np.float64]:
    """Return the sum of clicks of each training query [R]; random numbers without clicks.

    No rule by labels or neighbours was better than a random choice, see docs/decisions/0086.
    """
    if train.weights_V is None:
        return np.random.default_rng(SEED).random(len(train))
    return np.asarray(np.bincount(train.labels.row_of_value, train.weights_V, len(train)), np.float64)


def label_weights(split: Split) -> NDArray[np.float32]:
    """Return the weight of each true label in votes [V]: its click share, or 1 without clicks."""
    share_V = click_shares(split)
    return np.ones(len(split.labels.values), np.float32) if share_V is None else share_V.astype(np.float32)


def labels_of(queries: Split) -> MemoryLabels:
    """Return the weighted labels of the queries of the memory."""
    labels = queries.labels
    return MemoryLabels(labels.offsets, labels.values.astype(np.int32, copy=False), label_weights(queries))


def _with_strongest_labels(queries: Split) -> Split:
    labels = queries.labels
    if int(labels.lengths.max()) <= MAX_LABELS_PER_QUERY:
        return queries
    order_V = np.lexsort((-label_weights(queries), labels.row_of_value))
    rank_V = np.empty(len(order_V), np.int64)
    rank_V[order_V] = np.arange(len(order_V)) - labels.offsets[labels.row_of_value[order_V]]
    kept_V = rank_V < MAX_LABELS_PER_QUERY
    pairs = {f"{name}_V": value_V[kept_V] for name, value_V in queries.pair_values.items()}
    return Split(queries.ids_column, queries.texts_column, labels.keep(kept_V), queries.exclude, **pairs)
