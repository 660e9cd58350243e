"""Batches of row numbers: sampled positives, hard negatives, label pool, positive pairs (UniDEC, section 3).

All functions use NumPy and depend only on their arguments, including the random generator.
Shapes: N training queries, Q queries of the batch, P labels of its pool, M positive pairs in Q×P, O pairs (at most one
per query), H mined hard negatives per query.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.ragged import IntArray, Ragged
from training.recipe.sections import BatchingRecipe

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Queries, label pool, and the positive, picked and ignored pairs.

    `query_Q` are rows of the training data, `pool_P` ascending rows of the label table. `positive_row_M` and
    `positive_column_M`, `ignored_row` and `ignored_column` are coordinates in Q×P. So are `picked_row_O` and
    `picked_column_O`: the positive that was sampled first for each query, if it is in the pool.
    `target_M` are the targets of the positive pairs, `share_M` their parts in a mean over positives, both in (0, 1];
    None: 1 for all.
    """

    query_Q: Int64Array
    pool_P: Int64Array
    positive_row_M: Int64Array
    positive_column_M: Int64Array
    target_M: NDArray[np.float32] | None
    share_M: NDArray[np.float32] | None
    picked_row_O: Int64Array
    picked_column_O: Int64Array
    ignored_row: Int64Array
    ignored_column: Int64Array


@dataclass(frozen=True)
class Clicks:
    """Weights of the positives of all training queries, and labels that were shown and not clicked.

    `weight_V` (for sampling) and `share_V` (in a mean over positives) are above 0 and parallel to the values of the
    positives; None: all equal. `shown` are N lists of labels, of which a batch draws `shown_per_query` per query as
    hard negatives; None: none.
    """

    weight_V: NDArray[np.float32] | None = None
    share_V: NDArray[np.float32] | None = None
    shown: Ragged | None = None
    shown_per_query: int = 0


NO_CLICKS = Clicks()


def make_batch(
    query_Q: Int64Array,
    positives: Ragged,
    target_V: NDArray[np.float32] | None,
    exclude: Ragged,
    hard_negative_NH: NDArray[np.int32] | None,
    n_labels: int,
    recipe: BatchingRecipe,
    generator: np.random.Generator,
    clicks: Clicks = NO_CLICKS,
) -> Batch:
    """Sample one batch of Algorithm 1 for the queries `query_Q`.

    `target_V` are the targets of the values of `positives`; None: 1 for all. The positive pairs P^B are all true labels
    of a query in the pool, whichever query added them. Excluded pairs are neither positive nor negative.
    """
    positives_Q = positives.take(query_Q)
    weight_V, target_V, share_V = (
        None if value_V is None else value_V[positives.value_positions(query_Q)]
        for value_V in (clicks.weight_V, target_V, clicks.share_V)
    )
    sampled = sample_positives(positives_Q, recipe.positives, generator, weight_V)
    if recipe.pool_size == "all":
        pool_P = np.arange(n_labels)
    else:
        drawn = draw_hard_negatives(query_Q, hard_negative_NH, recipe.hard_negatives, generator)
        drawn = np.concatenate([drawn, draw_shown(query_Q, clicks, generator)])
        pool_P = label_pool(sampled.values.astype(np.int64, copy=False), drawn, recipe.pool_size, generator)
        if recipe.fill_with_positives:
            pool_P = filled(pool_P, positives_Q.values, recipe.pool_size, generator)
    row_M, column_M, in_pool = pairs_in_pool(positives_Q, pool_P)
    picked_row_O, picked_column_O, _ = pairs_in_pool(first_of_each(sampled), pool_P)
    ignored_row, ignored_column, _ = pairs_in_pool(exclude.take(query_Q), pool_P)
    return Batch(
        query_Q=query_Q,
        pool_P=pool_P,
        positive_row_M=row_M,
        positive_column_M=column_M,
        target_M=None if target_V is None else target_V[in_pool],
        share_M=None if share_V is None else share_V[in_pool],
        picked_row_O=picked_row_O,
        picked_column_O=picked_column_O,
        ignored_row=ignored_row,
        ignored_column=ignored_column,
    )


def sample_positives(
    positives_Q: Ragged, count: int, generator: np.random.Generator, weight_V: NDArray[np.float32] | None = None
) -> Ragged:
    """Sample at most `count` (β) positives per query without replacement, in random order.

    Each draw is in proportion to `weight_V`, parallel to the values; None: uniform. With weights, the keys are
    exponential variables with rate w, which order the values like successive draws (Efraimidis and Spirakis 2006).
    """
    row_of_value = positives_Q.row_of_value
    # Sorting by random keys within each row shuffles all rows at once; the first β values of each row are the sample.
    key_V = generator.random(len(row_of_value))
    if weight_V is not None:
        key_V = -np.log1p(-key_V) / weight_V
    order = np.lexsort((key_V, row_of_value))
    rank = np.arange(len(order)) - positives_Q.offsets[:-1][row_of_value]
    return Ragged(positives_Q.values[order], positives_Q.offsets).keep(rank < count)


def first_of_each(lists: Ragged) -> Ragged:
    """Return the first value of each list; empty lists stay empty."""
    return lists.keep(np.arange(len(lists.values)) == lists.offsets[:-1][lists.row_of_value])


def draw_hard_negatives(
    query_Q: Int64Array, hard_negative_NH: NDArray[np.int32] | None, count: int, generator: np.random.Generator
) -> Int64Array:
    """Draw `count` (η) hard negatives per query without replacement; −1 in `hard_negative_NH` is padding."""
    if hard_negative_NH is None or count == 0:
        return np.zeros(0, np.int64)
    mined_QH = hard_negative_NH[query_Q]
    key_QH = np.where(mined_QH >= 0, generator.random(mined_QH.shape), 2.0)
    drawn = np.take_along_axis(mined_QH, np.argsort(key_QH, axis=1)[:, :count], axis=1).ravel()
    return drawn[drawn >= 0].astype(np.int64)


def draw_shown(query_Q: Int64Array, clicks: Clicks, generator: np.random.Generator) -> Int64Array:
    """Draw labels that were shown for a query and not clicked, without replacement; none draws no random number."""
    if clicks.shown is None:
        return np.zeros(0, np.int64)
    return sample_positives(clicks.shown.take(query_Q), clicks.shown_per_query, generator).values.astype(np.int64)


def filled(pool_P: Int64Array, positive_V: IntArray, size: int, generator: np.random.Generator) -> Int64Array:
    """Return the pool with further positives, drawn at random, up to `size` labels, in ascending order."""
    others = np.setdiff1d(positive_V.astype(np.int64), pool_P)
    count = min(max(size - len(pool_P), 0), len(others))
    return np.sort(np.concatenate([pool_P, generator.choice(others, size=count, replace=False)]))


def label_pool(sampled: Int64Array, drawn: Int64Array, maximum: int, generator: np.random.Generator) -> Int64Array:
    """Return the distinct labels in ascending order, at most `maximum`.

    Above the limit, hard negatives are dropped first, then positives, both at random: dropping by frequency would drop
    the tail.
    """
    positive = np.unique(sampled)
    if len(positive) > maximum:
        return np.sort(generator.choice(positive, size=maximum, replace=False))
    negative = np.setdiff1d(drawn, positive)
    room = maximum - len(positive)
    if len(negative) > room:
        negative = generator.choice(negative, size=room, replace=False)
    return np.sort(np.concatenate([positive, negative]))


def pairs_in_pool(labels_Q: Ragged, pool_P: IntArray) -> tuple[Int64Array, Int64Array, NDArray[np.bool_]]:
    """Return coordinates (row, column) in Q×P of the labels that are in the pool, and a mask of those labels.

    `pool_P` are ascending label rows; the mask has one value per value of `labels_Q`.
    """
    column = np.searchsorted(pool_P, labels_Q.values)
    in_pool = column < len(pool_P)
    in_pool[in_pool] = pool_P[column[in_pool]] == labels_Q.values[in_pool]
    return labels_Q.row_of_value[in_pool], column[in_pool].astype(np.int64), in_pool
