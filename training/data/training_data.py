"""What a run learns from: the training split, label queries, validation queries and labels, all tokenized.

Shapes: V positives of all training rows, L labels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retrieval import metrics
from retrieval.errors import DatasetError
from training.batching.label_queries import label_queries
from training.data.dataset import Dataset, Split
from training.model.tokens import TokenizedTexts, tokenize
from training.recipe.schema import Recipe


@dataclass(frozen=True)
class Material:
    """What a run learns from, in memory: the training split, the validation queries, the labels, all tokenized.

    The first `queries` rows of `train` are the training queries; label queries follow, and `label_queries` of them are
    drawn for each stretch between two refreshes. `target_V` float32 says how true each of `train`'s labels is, None
    when all are true. `positives_L` counts each label's positives among training queries.
    """

    train: Split
    train_tokens: TokenizedTexts
    target_V: NDArray[np.float32] | None
    queries: int
    label_queries: int
    validation: Split
    validation_tokens: TokenizedTexts
    label_tokens: TokenizedTexts
    positives_L: NDArray[np.int64]
    inverse_propensity_L: NDArray[np.float64]


def validation_queries(dataset: Dataset, recipe: Recipe) -> Split:
    """Up to `validation.max_queries` validation queries that have truth, the same ones each time."""
    split = dataset.split("validation")
    scored = np.flatnonzero(split.labels.lengths > 0)
    if not len(scored):
        raise DatasetError(
            f"{dataset.folder} has no validation query with a true label, and the best epoch is chosen on them. "
            "Prepare the dataset with a greater --validation."
        )
    most = recipe.validation.max_queries
    if len(scored) > most:
        scored = np.sort(np.random.default_rng(recipe.seed).choice(scored, size=most, replace=False))
    return split.take(scored)


def material_of(dataset: Dataset, recipe: Recipe, validation: Split, tokenizer: Tokenizer, tokens: Path) -> Material:
    """Tokenize what is not tokenized yet, into the folder `tokens`, and count what a run needs to know of labels."""
    train = dataset.split("train")
    counts_L = np.bincount(train.labels.values, minlength=dataset.n_labels)
    held_out = dataset.split("validation").labels
    seen_L = counts_L + np.bincount(held_out.values, minlength=dataset.n_labels)
    constants = recipe.propensity
    extra = label_queries(train, dataset.label_texts, recipe.batching.label_queries)
    query_tokens = tokenize(train.texts, tokenizer, tokens, "train")
    label_tokens = tokenize(dataset.label_texts, tokenizer, tokens, "labels")
    hard_V = np.ones(len(train.labels.values), np.float32)
    return Material(
        train=train.followed_by(extra.split) if len(extra) else train,
        train_tokens=query_tokens.followed_by(label_tokens.take(extra.label_G)) if len(extra) else query_tokens,
        target_V=np.concatenate([hard_V, extra.target_V]) if (extra.target_V < 1).any() else None,
        queries=len(train),
        label_queries=extra.drawn,
        validation=validation,
        validation_tokens=tokenize(validation.texts, tokenizer, tokens, "validation"),
        label_tokens=label_tokens,
        positives_L=counts_L,
        inverse_propensity_L=metrics.propensities(seen_L, len(train) + len(held_out), constants.a, constants.b),
    )
