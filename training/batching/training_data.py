"""Training data in memory: queries, label queries, validation queries and labels, all tokenized.

Shapes: N training rows, V positives of all training rows, L labels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval import metrics
from retrieval.errors import DatasetError
from training.batching.batches import NO_CLICKS, Clicks
from training.batching.label_queries import label_queries
from training.data.clicks import click_shares, label_ages, repeated_queries, weighted_frequency
from training.data.dataset import Dataset, Split
from training.data.exposures import labels_shown
from training.data.memory_queries import memory_queries
from training.data.ragged import Ragged
from training.data.token_cache import TextTokenizer, TokenizedTexts, tokenize_cached
from training.recipe.schema import Recipe


@dataclass(frozen=True)
class TrainingData:
    """Training rows, validation queries and labels of a run.

    The first `n_queries` rows of `train` are the training queries, the others label queries; `label_queries_per_epoch`
    of those are drawn at each refresh. `target_V` float32 is the target of each positive of `train`; None: 1 for all.
    `positives_L` counts the training queries per label; if `click_frequency_L` is not None, popularity is computed from
    it. `repeated_Q` and `label_age_L` define groups of an evaluation (training/data/clicks.py). `memory` has the
    training queries that vote. `own_label_N` is the label whose text a row is, −1 for training queries; None: no row is
    a label's text.
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
    clicks: Clicks = NO_CLICKS
    click_frequency_L: NDArray[np.float64] | None = None
    repeated_Q: NDArray[np.bool_] | None = None
    label_age_L: NDArray[np.float32] | None = None
    memory: Split | None = None
    memory_tokens: TokenizedTexts | None = None
    own_label_N: NDArray[np.int64] | None = None


def validation_queries(dataset: Dataset, recipe: Recipe) -> Split:
    """Return up to `validation.max_queries` validation queries with true labels; the same ones for the same seed.

    Raises DatasetError if there is none, or if the recipe's metrics need weights and the queries have none.
    """
    split = dataset.split("validation")
    weighted = [name for name in recipe.validation.metrics if name.startswith("w")]
    if weighted and split.weights_V is None:
        raise DatasetError(
            f"{dataset.folder} has no click weights, which validation.metrics needs for {weighted[0]}. Prepare the "
            "dataset from a log with clicks, or choose other metrics."
        )
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
    extra = label_queries(train, dataset.label_texts, recipe.batching.label_queries, recipe.seed)
    query_tokens = tokenize_cached(train.texts, tokenizer, cache, "train")
    label_tokens = tokenize_cached(dataset.label_texts, tokenizer, cache, "labels")
    memory = memory_queries(train, recipe.memory.max_queries)
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
        clicks=_clicks(dataset, recipe, extra.split),
        click_frequency_L=weighted_frequency(train, dataset.n_labels, recipe.clicks.popularity),
        repeated_Q=repeated_queries(validation.texts, train.texts),
        label_age_L=label_ages(dataset, "validation"),
        memory=None if memory is None else memory.queries,
        memory_tokens=None if memory is None else query_tokens.take(memory.row_M),
        own_label_N=np.concatenate([np.full(len(train), -1), extra.label_G]) if len(extra) else None,
    )


def _clicks(dataset: Dataset, recipe: Recipe, label_queries: Split) -> Clicks:
    """Return what batches use of clicks; label queries have equal weights and no exposures."""
    train, settings, shown = dataset.split("train"), recipe.clicks, None
    equal_V = np.ones(len(label_queries.labels.values), np.float32)
    weight_V, share_V = (_powers(train, exponent, equal_V) for exponent in (settings.sampling, settings.loss))
    if settings.exposed_negatives:
        exposures = dataset.exposures()
        if exposures is None:
            raise DatasetError(
                f"{dataset.folder} has no exposures, which clicks.exposed_negatives needs. Prepare the dataset from a "
                "log with clicks and impressions, or set clicks.exposed_negatives to 0."
            )
        shown = labels_shown(exposures, "train", len(train))
        shown = shown.keep(~(shown.overlap(train.labels) | shown.overlap(train.exclude)))
        shown = shown.followed_by(Ragged.empty(len(label_queries)))
    return Clicks(weight_V, share_V, shown, settings.exposed_negatives)


def _powers(train: Split, exponent: float, equal_V: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return (click share)^exponent of the positives, followed by `equal_V`; None if all are 1."""
    share_V = click_shares(train) if exponent else None
    return None if share_V is None else np.concatenate([(share_V**exponent).astype(np.float32), equal_V])
