"""Label texts as extra training queries: labels that share queries are each other's positives (after Gandalf, 2024).

Where queries are themselves labels, as in a thesaurus or among related products, this tells the model what a text
means that it has only seen from the label's side. Where queries look nothing like labels it would teach another task,
so by default there are as many of them as the share of training queries that are label texts.

Shapes: N training queries, L labels, G label queries.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Split
from training.data.ragged import Ragged
from training.recipe import LabelQueriesRecipe

LABELS_A_BLOCK = 2_000
LEAST_SHARED = 2  # one query in common is chance


def label_queries(train: Split, label_texts: Sequence[str], recipe: LabelQueriesRecipe) -> tuple[Split, int]:
    """Rows to learn from beside the training queries, and how many of them an epoch learns from.

    A label whose text is a training query has better positives already; one that shares queries with no other label
    has none. The label itself is excluded: neither positive nor negative of its own text.
    """
    share = recipe.share if recipe.share is not None else share_of_labels(train.texts, label_texts)
    drawn = round(share * len(train))
    if not drawn:
        return train.take(np.zeros(0, np.int64)), 0
    neighbours = neighbouring_labels(train.labels, len(label_texts), recipe.most, recipe.threshold)
    known = set(train.texts)
    is_query_L = np.fromiter((text in known for text in label_texts), np.bool_, len(label_texts))
    rows_G = np.flatnonzero((neighbours.lengths > 0) & ~is_query_L)
    texts = [label_texts[row] for row in rows_G.tolist()]
    own = Ragged.from_lengths(rows_G.astype(np.int32), np.ones(len(rows_G), np.int64))
    return Split.from_lists([f"label {row}" for row in rows_G], texts, neighbours.take(rows_G), own), drawn


def share_of_labels(query_texts: Sequence[str], label_texts: Sequence[str]) -> float:
    """Share of the queries whose text is a label's."""
    known = set(label_texts)
    return sum(text in known for text in query_texts) / max(1, len(query_texts))


def neighbouring_labels(labels: Ragged, n_labels: int, most: int, threshold: float) -> Ragged:
    """For each of L labels at most `most` others that it shares queries with, by the cosine of their sets of queries.

    `labels` are the training queries' positives. Kept are cosines G_ij / √(G_ii·G_jj) of at least `threshold`, G the
    count of common queries. Sparse and in blocks: memory is bounded by what LABELS_A_BLOCK labels share.
    """
    from scipy.sparse import csr_array

    ones = np.ones(len(labels.values), np.float32)
    clicked_NL = csr_array((ones, labels.values, labels.offsets), shape=(len(labels), n_labels))
    clicked_LN = clicked_NL.T.tocsr()
    count_L = np.maximum(np.bincount(labels.values, minlength=n_labels), 1).astype(np.float64)
    found: list[NDArray[np.int32]] = []
    lengths_L = np.zeros(n_labels, np.int64)
    for start in range(0, n_labels, LABELS_A_BLOCK):
        shared = (clicked_LN[start : start + LABELS_A_BLOCK] @ clicked_NL).tocoo()
        label, other = shared.coords[0] + start, shared.coords[1]
        # One root of the exact product: of two, a cosine that is just the threshold would fall below it.
        cosine = shared.data / np.sqrt(count_L[label] * count_L[other])
        kept = (cosine >= threshold) & (shared.data >= LEAST_SHARED) & (label != other)
        label, other, cosine = label[kept], other[kept], cosine[kept]
        order = np.lexsort((other, -cosine, label))  # by label, nearest first, equal ones by row
        label, other = label[order], other[order]
        first = np.flatnonzero(np.diff(label, prepend=-1))
        rank = np.arange(len(label)) - np.repeat(first, np.diff(first, append=len(label)))
        lengths_L += np.bincount(label[rank < most], minlength=n_labels)
        found.append(other[rank < most].astype(np.int32))
    return Ragged.from_lengths(np.concatenate(found), lengths_L)
