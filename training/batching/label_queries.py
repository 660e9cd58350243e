"""Label texts as extra training queries, their positives labels that share training queries with them (Gandalf, 2024).

Where queries are themselves labels, as in a thesaurus or among related products, this tells the model what a text
means that it has only seen from the label's side. Where most queries are no labels it would teach another task, so by
default there are as many of them as the share of training queries that are label texts, or none when that is the
smaller part.

G counts common queries: G_ij those of labels i and j, G_jj all of label j's. For the text of label j the targets are

    neighbours   1 for each i with a cosine G_ij / √(G_ii·G_jj) of at least the threshold; j itself is left out
    gandalf      G_ij / G_jj, where at least the threshold; 1 for j itself
    glas         ½·(G_ij / G_ii + G_ij / G_jj), where at least the threshold; 1 for j itself
    one_hot      1 for j itself

Shapes: N training queries, L labels, G label queries, V positives of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Split
from training.data.ragged import Ragged
from training.recipe.schema import LabelQueriesRecipe

LABELS_PER_BLOCK = 2_000
MOST = 0.5  # at a share of 0.18 label queries cost a point of P@5
LEAST_SHARED = 2  # of neighbours, whose target is 1: one query in common is chance

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelQueries:
    """G rows to learn from beside the training queries; row g is the text of label `label_G[g]`.

    `target_V` float32 in (0, 1] stands beside `split.labels.values`. An epoch learns from `drawn` of the rows.
    """

    split: Split
    label_G: NDArray[np.int64]
    target_V: NDArray[np.float32]
    drawn: int

    def __len__(self) -> int:
        return len(self.label_G)


def label_queries(train: Split, label_texts: Sequence[str], recipe: LabelQueriesRecipe) -> LabelQueries:
    """Label texts as queries.

    As `neighbours`, a label whose text is a training query has better positives already and gets no row, nor does one
    that shares queries with no other; the others exclude themselves: neither positive nor negative of their own text.
    """
    share = recipe.share if recipe.share is not None else usual_share(train.texts, label_texts)
    drawn = round(share * len(train))
    if not drawn:
        nothing = np.zeros(0, np.int64)
        return LabelQueries(train.take(nothing), nothing, np.zeros(0, np.float32), 0)
    related, target_V = related_labels(train.labels, len(label_texts), recipe)
    chosen_L = related.lengths > 0
    if recipe.targets == "neighbours":
        known = set(train.texts)
        chosen_L &= ~np.fromiter((text in known for text in label_texts), np.bool_, len(label_texts))
    label_G = np.flatnonzero(chosen_L)
    own = Ragged.from_lengths(label_G.astype(np.int32), np.ones(len(label_G), np.int64))
    excluded = own if recipe.targets == "neighbours" else Ragged.empty(len(label_G))
    texts = [label_texts[row] for row in label_G.tolist()]
    split = Split.from_lists([f"label {row}" for row in label_G], texts, related.select(chosen_L), excluded)
    return LabelQueries(split, label_G, target_V[chosen_L[related.row_of_value]], min(drawn, len(label_G)))


def usual_share(query_texts: Sequence[str], label_texts: Sequence[str]) -> float:
    """Share of the queries whose text is a label's; 0 where that is not more than half of them."""
    known = set(label_texts)
    share = sum(text in known for text in query_texts) / max(1, len(query_texts))
    return share if share > MOST else 0.0


def related_labels(labels: Ragged, n_labels: int, recipe: LabelQueriesRecipe) -> tuple[Ragged, NDArray[np.float32]]:
    """For each of L labels its targets, at most `recipe.max_positives` of them, greatest first; their values stand beside.

    `labels` are the training queries' positives. The result is sparse and computed in blocks, so the targets that
    LABELS_PER_BLOCK labels share bound the memory.
    """
    if recipe.targets == "one_hot":
        own = Ragged.from_lengths(np.arange(n_labels, dtype=np.int32), np.ones(n_labels, np.int64))
        return own, np.ones(n_labels, np.float32)
    from scipy.sparse import csr_array

    ones = np.ones(len(labels.values), np.float32)
    clicked_NL = csr_array((ones, labels.values, labels.offsets), shape=(len(labels), n_labels))
    clicked_LN = clicked_NL.T.tocsr()
    count_L = np.bincount(labels.values, minlength=n_labels).astype(np.float64)
    found: list[NDArray[np.int32]] = []
    targets: list[NDArray[np.float32]] = []
    lengths_L = np.zeros(n_labels, np.int64)
    for start in range(0, n_labels, LABELS_PER_BLOCK):
        shared = (clicked_LN[start : start + LABELS_PER_BLOCK] @ clicked_NL).tocoo()
        label, other = shared.coords[0] + start, shared.coords[1]
        target = _targets(recipe, shared.data, label, other, count_L)
        kept = target > 0
        label, other, target = label[kept], other[kept], target[kept]
        order = np.lexsort((other, -target, label))  # by label, greatest first, equal ones by row
        label, other, target = label[order], other[order], target[order]
        first = np.flatnonzero(np.diff(label, prepend=-1))
        rank = np.arange(len(label)) - np.repeat(first, np.diff(first, append=len(label)))
        lengths_L += np.bincount(label[rank < recipe.max_positives], minlength=n_labels)
        found.append(other[rank < recipe.max_positives].astype(np.int32))
        targets.append(target[rank < recipe.max_positives].astype(np.float32))
    target_V = np.concatenate(targets)
    if recipe.targets == "neighbours":
        target_V = np.ones_like(target_V)
    return Ragged.from_lengths(np.concatenate(found), lengths_L), target_V


def _targets(
    recipe: LabelQueriesRecipe, shared: Floats, label: NDArray[np.int64], other: NDArray[np.int64], count_L: Floats
) -> Floats:
    """What the text of `label` is taught of `other`, from how many queries they share; 0 for nothing."""
    of_label, of_other = count_L[label], count_L[other]
    match recipe.targets:
        case "gandalf":
            target = shared / of_label
        case "glas":
            target = 0.5 * (shared / of_label + shared / of_other)
        case _:
            # One root of the exact product: of two, a cosine that is just the threshold would fall below it.
            target = shared / np.sqrt(of_label * of_other)
            target = np.where((shared >= LEAST_SHARED) & (label != other), target, 0.0)
    return np.where(target >= recipe.threshold, target, 0.0)
