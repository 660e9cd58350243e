"""Algorithm 1's inner lines: sampled positives, drawn negatives, label pool, target mask (UniDEC, section 3).

Everything here is numpy on row numbers and depends on nothing but its arguments, the random generator included.
Shapes: N training queries, Q queries of the batch, P labels of its pool, M positive pairs in Q×P, η drawn negatives,
O pairs of which each query has one, H mined negatives of a query.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.ragged import IntArray, Ragged
from training.recipe.schema import BatchingRecipe

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Queries, the labels they are compared with, and which pairs are positive, picked or left out.

    `query_Q` are rows of the training split, `pool_P` rising rows of the label table; `positive_row_M`,
    `positive_column_M` and `ignored_row`, `ignored_column` are coordinates in Q×P; so are `picked_row_O` and
    `picked_column_O`: of each query the one positive that was drawn for it first, where the pool still holds it.
    `target_M` says how true each positive is, in (0, 1]; None when all are true.
    """

    query_Q: Rows
    pool_P: Rows
    positive_row_M: Rows
    positive_column_M: Rows
    target_M: NDArray[np.float32] | None
    picked_row_O: Rows
    picked_column_O: Rows
    ignored_row: Rows
    ignored_column: Rows


def make_batch(
    query_Q: Rows,
    positives: Ragged,
    target_V: NDArray[np.float32] | None,
    exclude: Ragged,
    hard_negative_NH: NDArray[np.int32] | None,
    n_labels: int,
    recipe: BatchingRecipe,
    generator: np.random.Generator,
) -> Batch:
    """One batch of Algorithm 1 for the queries `query_Q`, of `n_labels` labels in all.

    `target_V` stands beside the values of `positives`: how true each is, None when all are.

    P^B holds every true label of a query that is in the pool, however it got there; excluded pairs are left out of the
    comparison altogether.
    """
    positives_Q = positives.take(query_Q)
    sampled = sample_positives(positives_Q, recipe.positives, generator)
    if recipe.pool_size == "all":
        pool_P = np.arange(n_labels)
    else:
        drawn = draw_hard_negatives(query_Q, hard_negative_NH, recipe.hard_negatives, generator)
        pool_P = label_pool(sampled.values.astype(np.int64, copy=False), drawn, recipe.pool_size, generator)
    row_M, column_M, found = pairs_in_pool(positives_Q, pool_P)
    picked_row_O, picked_column_O, _ = pairs_in_pool(first_of_each(sampled), pool_P)
    ignored_row, ignored_column, _ = pairs_in_pool(exclude.take(query_Q), pool_P)
    return Batch(
        query_Q=query_Q,
        pool_P=pool_P,
        positive_row_M=row_M,
        positive_column_M=column_M,
        target_M=None if target_V is None else target_V[positives.value_positions(query_Q)[found]],
        picked_row_O=picked_row_O,
        picked_column_O=picked_column_O,
        ignored_row=ignored_row,
        ignored_column=ignored_column,
    )


def sample_positives(positives_Q: Ragged, most: int, generator: np.random.Generator) -> Ragged:
    """At most `most` (β) positives of each query, without replacement, uniformly, in the order they were drawn."""
    row_of_value = positives_Q.row_of_value
    # Sorting random keys within each row is a shuffle of every row at once; the first β of each are the sample.
    order = np.lexsort((generator.random(len(row_of_value)), row_of_value))
    rank = np.arange(len(order)) - positives_Q.offsets[:-1][row_of_value]
    return Ragged(positives_Q.values[order], positives_Q.offsets).keep(rank < most)


def first_of_each(lists: Ragged) -> Ragged:
    """Each list cut off after its first value."""
    return lists.keep(np.arange(len(lists.values)) == lists.offsets[:-1][lists.row_of_value])


def draw_hard_negatives(
    query_Q: Rows, hard_negative_NH: NDArray[np.int32] | None, count: int, generator: np.random.Generator
) -> Rows:
    """`count` (η) of each query's mined negatives, without replacement; −1 pads a query that has fewer."""
    if hard_negative_NH is None or count == 0:
        return np.zeros(0, np.int64)
    mined_QH = hard_negative_NH[query_Q]
    key_QH = np.where(mined_QH >= 0, generator.random(mined_QH.shape), 2.0)
    drawn = np.take_along_axis(mined_QH, np.argsort(key_QH, axis=1)[:, :count], axis=1).ravel()
    return drawn[drawn >= 0].astype(np.int64)


def label_pool(sampled: Rows, drawn: Rows, most: int, generator: np.random.Generator) -> Rows:
    """Distinct labels in rising order, at most `most`.

    Over the cap hard negatives go first, then positives, both at random: dropping by frequency would drop the tail.
    """
    positive = np.unique(sampled)
    if len(positive) > most:
        return np.sort(generator.choice(positive, size=most, replace=False))
    negative = np.setdiff1d(drawn, positive)
    room = most - len(positive)
    if len(negative) > room:
        negative = generator.choice(negative, size=room, replace=False)
    return np.sort(np.concatenate([positive, negative]))


def pairs_in_pool(labels_Q: Ragged, pool_P: IntArray) -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """Coordinates (row, column) in Q×P of each query's labels that are in the pool (rising label rows), and which."""
    place = np.searchsorted(pool_P, labels_Q.values)
    found = place < len(pool_P)
    found[found] = pool_P[place[found]] == labels_Q.values[found]
    return labels_Q.row_of_value[found], place[found].astype(np.int64), found
