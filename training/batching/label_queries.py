"""Label queries: label texts as extra training queries (Gandalf, 2024).

The positives of a label query are labels that share training queries with it. This helps if queries are themselves
labels, as in a thesaurus or among related products. Otherwise it would teach another task. Therefore the default number
of label queries is the share of training queries that are label texts, or 0 if that is at most half.

G_ij is the number of training queries that labels i and j share, G_jj the number of label j's queries; or both are
visits of random walks from label j. The targets for the text of label j are

    neighbours   1 for each i ≠ j whose cosine G_ij / √(G_ii·G_jj) reaches the threshold
    gandalf      G_ij / G_jj if it is above the threshold (equation 1.6 of the thesis); 1 for j itself
    glas         σ(S_ij) with S_ij = ½·(G_ij / G_ii + G_ij / G_jj) if S_ij is above the threshold; σ(1) for j itself
    one_hot      1 for j itself

The classifier learns j itself from j's text. The dual encoder does not: both texts are equal, so their vectors are too.

Shapes: N training queries, L labels, G label queries, V positives of all label queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.batching.cooccurrence import Block, random_walks, shared_queries
from training.data.dataset import Split
from training.data.ragged import Ragged
from training.optim.random_streams import Stream, random_generator
from training.recipe.sections import LabelQueriesRecipe

LABELS_PER_BLOCK = 2_000
MIN_SHARE = 0.5  # of queries that are label texts; at a share of 0.18 label queries cost a point of P@5
MIN_SHARED = 2  # queries that neighbours share; one may be chance

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelQueries:
    """G extra training rows; row g is the text of label `label_G[g]`.

    `target_V` are the targets of `split.labels.values`, float32 in (0, 1]. An epoch uses `per_epoch` of the rows.
    """

    split: Split
    label_G: NDArray[np.int64]
    target_V: NDArray[np.float32]
    per_epoch: int

    def __len__(self) -> int:
        return len(self.label_G)


def label_queries(train: Split, label_texts: Sequence[str], recipe: LabelQueriesRecipe, seed: int = 0) -> LabelQueries:
    """Build the label queries of a training split.

    With `neighbours`, labels whose text is a training query or that have no neighbour get no row. The other labels are
    excluded from their own label query: neither positive nor negative.
    """
    share = recipe.share if recipe.share is not None else default_share(train.texts, label_texts)
    per_epoch = round(share * len(train))
    if not per_epoch:
        no_rows = np.zeros(0, np.int64)
        return LabelQueries(train.take(no_rows), no_rows, np.zeros(0, np.float32), 0)
    related, target_V = related_labels(train.labels, len(label_texts), recipe, seed)
    counts_L = np.bincount(train.labels.values, minlength=len(label_texts))
    selected_L = (related.lengths > 0) & sampled_labels(counts_L, recipe, seed)
    if recipe.targets == "neighbours":
        known = set(train.texts)
        selected_L &= ~np.fromiter((text in known for text in label_texts), np.bool_, len(label_texts))
    label_G = np.flatnonzero(selected_L)
    itself = Ragged.from_lengths(label_G.astype(np.int32), np.ones(len(label_G), np.int64))
    excluded = itself if recipe.targets == "neighbours" else Ragged.empty(len(label_G))
    texts = [label_texts[row] for row in label_G.tolist()]
    split = Split.from_lists([f"label {row}" for row in label_G], texts, related.select(selected_L), excluded)
    return LabelQueries(split, label_G, target_V[selected_L[related.row_of_value]], min(per_epoch, len(label_G)))


def default_share(query_texts: Sequence[str], label_texts: Sequence[str]) -> float:
    """Return the share of queries that are label texts; 0 if it is at most MIN_SHARE."""
    known = set(label_texts)
    share = sum(text in known for text in query_texts) / max(1, len(query_texts))
    return share if share > MIN_SHARE else 0.0


def sampled_labels(counts_L: NDArray[np.int64], recipe: LabelQueriesRecipe, seed: int) -> NDArray[np.bool_]:
    """Return which labels may become label queries: a share of them, drawn at random or those with fewest queries."""
    generator = random_generator(seed, Stream.LABEL_QUERIES, 0)
    order_L = generator.permutation(len(counts_L))
    if recipe.labels_order == "tail_first":
        order_L = order_L[np.argsort(counts_L[order_L], kind="stable")]
    sampled_L = np.zeros(len(counts_L), np.bool_)
    sampled_L[order_L[: round(recipe.labels_share * len(counts_L))]] = True
    return sampled_L


def related_labels(
    labels: Ragged, n_labels: int, recipe: LabelQueriesRecipe, seed: int = 0
) -> tuple[Ragged, NDArray[np.float32]]:
    """Return the positives of each label's text, at most `recipe.max_positives`, and their targets, greatest first.

    `labels` are the training queries' positives.
    """
    if recipe.targets == "one_hot":
        itself = Ragged.from_lengths(np.arange(n_labels, dtype=np.int32), np.ones(n_labels, np.int64))
        return itself, np.ones(n_labels, np.float32)
    if recipe.graph == "random_walk":
        walked, count_L = _walks(labels, n_labels, seed)
        blocks = iter(walked)
    else:
        blocks = shared_queries(labels, n_labels, LABELS_PER_BLOCK)
        count_L = np.bincount(labels.values, minlength=n_labels).astype(np.float64)
    positives: list[NDArray[np.int32]] = []
    targets: list[NDArray[np.float32]] = []
    lengths_L = np.zeros(n_labels, np.int64)
    for label, other, shared in blocks:
        target = _targets(recipe, shared, label, other, count_L)
        positive = target > 0
        label, other, target = label[positive], other[positive], target[positive]
        order = np.lexsort((other, -target, label))  # by label, then greatest target, then row
        label, other, target = label[order], other[order], target[order]
        first = np.flatnonzero(np.diff(label, prepend=-1))
        rank = np.arange(len(label)) - np.repeat(first, np.diff(first, append=len(label)))
        lengths_L += np.bincount(label[rank < recipe.max_positives], minlength=n_labels)
        positives.append(other[rank < recipe.max_positives].astype(np.int32))
        targets.append(target[rank < recipe.max_positives].astype(np.float32))
    target_V = np.concatenate(targets)
    if recipe.targets == "neighbours":
        target_V = np.ones_like(target_V)
    return Ragged.from_lengths(np.concatenate(positives), lengths_L), target_V


def _walks(labels: Ragged, n_labels: int, seed: int) -> tuple[list[Block], Floats]:
    """Return the blocks of random walks, and the visits of each label to itself, at least 1."""
    blocks, count_L = list(random_walks(labels, n_labels, seed, LABELS_PER_BLOCK)), np.ones(n_labels)
    for label, other, visits in blocks:
        itself = label == other
        count_L[label[itself]] = visits[itself]
    return blocks, count_L


def _targets(
    recipe: LabelQueriesRecipe, shared: Floats, label: NDArray[np.int64], other: NDArray[np.int64], count_L: Floats
) -> Floats:
    """Return the target of `other` for the text of `label` from the number of shared queries; 0: not a positive."""
    # Random walks may visit another label more often than their own.
    of_label, of_other = np.maximum(count_L[label], shared), np.maximum(count_L[other], shared)
    match recipe.targets:
        case "gandalf":
            share = shared / of_label
            return np.where(share > recipe.threshold, share, 0.0)
        case "glas":
            similarity = 0.5 * (shared / of_label + shared / of_other)
            return np.where(similarity > recipe.threshold, 1.0 / (1.0 + np.exp(-similarity)), 0.0)
        case _:
            # One root of the exact product: with two roots, a cosine equal to the threshold could be rounded below it.
            cosine = shared / np.sqrt(of_label * of_other)
            cosine = np.where((shared >= MIN_SHARED) & (label != other), cosine, 0.0)
            return np.where(cosine >= recipe.threshold, cosine, 0.0)
