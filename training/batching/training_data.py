"""Training data in memory: queries, label queries, validation queries and labels, all tokenized.

Shapes: N training rows, V positives of all training rows, L labels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval import metrics
from retrieval.errors import DatasetError
from training.batching.label_queries import label_queries
from training.data.dataset import Dataset, Split
from training.data.token_cache import TextTokenizer, TokenizedTexts, tokenize_cached
from training.recipe.schema import Recipe


@dataclass(frozen=True)
class TrainingData:
    """Training rows, validation queries and labels of a run.

    The first `n_queries` rows of `train` are the training queries, the others label queries; `label_queries_per_epoch`
    of those are drawn at each refresh. `target_V` float32 is the target of each positive of `train`; None: 1 for all.
    `positives_L` counts the training queries per label.
    """

    train: Split
    train_tokens: TokenizedTexts
    target_V: NDArray[np.float32] | None
    n_queries: int
    label_queries_per_epoch: int
    validation: Split
    validation_tokens: TokenizedTexts
    label_tokens: TokenizedTexts
    positives_L: NDArray[np.int64]
    inverse_propensity_L: NDArray[np.float64]


def validation_queries(dataset: Dataset, recipe: Recipe) -> Split:
    """Return up to `validation.max_queries` validation queries with true labels; the same ones for the same seed.

    Raises DatasetError if there is none.
    """
    split = dataset.split("validation")
    with_truth = np.flatnonzero(split.labels.lengths > 0)
    if not len(with_truth):
        raise DatasetError(
            f"{dataset.folder} has no validation query with a true label, so no best epoch can be selected. "
            "Prepare the dataset with a greater --validation."
        )
    maximum = recipe.validation.max_queries
    if len(with_truth) > maximum:
        with_truth = np.sort(np.random.default_rng(recipe.seed).choice(with_truth, size=maximum, replace=False))
    return split.take(with_truth)


def build_training_data(
    dataset: Dataset, recipe: Recipe, validation: Split, tokenizer: TextTokenizer, cache: Path
) -> TrainingData:
    """Tokenize all texts, with a token cache in the folder `cache`; add label queries; compute label statistics."""
    train = dataset.split("train")
    positives_L = np.bincount(train.labels.values, minlength=dataset.n_labels)
    held_out = dataset.split("validation").labels
    frequency_L = positives_L + np.bincount(held_out.values, minlength=dataset.n_labels)
    constants = recipe.propensity
    extra = label_queries(train, dataset.label_texts, recipe.batching.label_queries)
    query_tokens = tokenize_cached(train.texts, tokenizer, cache, "train")
    label_tokens = tokenize_cached(dataset.label_texts, tokenizer, cache, "labels")
    target_of_query_V = np.ones(len(train.labels.values), np.float32)
    return TrainingData(
        train=train.followed_by(extra.split) if len(extra) else train,
        train_tokens=query_tokens.followed_by(label_tokens.take(extra.label_G)) if len(extra) else query_tokens,
        target_V=np.concatenate([target_of_query_V, extra.target_V]) if (extra.target_V < 1).any() else None,
        n_queries=len(train),
        label_queries_per_epoch=extra.per_epoch,
        validation=validation,
        validation_tokens=tokenize_cached(validation.texts, tokenizer, cache, "validation"),
        label_tokens=label_tokens,
        positives_L=positives_L,
        inverse_propensity_L=metrics.propensities(frequency_L, len(train) + len(held_out), constants.a, constants.b),
    )
