"""Numbers from clicks and dates: click shares, weighted label frequency, repeated queries, ages of labels.

Shapes: R queries, V true labels of all queries, Q queries of a split, L labels.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from retrieval.query_text import query_identity
from training.data.dataset import Dataset
from training.data.split import Split

MIN_SHARE = 1e-6  # of clicks; keeps powers of a share in the range of float32


def click_shares(split: Split) -> NDArray[np.float64] | None:
    """Return each true label's weight divided by the greatest weight of its query [V]; None without weights."""
    if split.weights_V is None:
        return None
    greatest_R = np.zeros(len(split))
    np.maximum.at(greatest_R, split.labels.row_of_value, split.weights_V)
    return np.maximum(split.weights_V / greatest_R[split.labels.row_of_value], MIN_SHARE)


def weighted_frequency(split: Split, n_labels: int, exponent: float) -> NDArray[np.float64] | None:
    """Return the sum of weight^exponent of each label's positives [L]; None if it is their number."""
    if split.weights_V is None or exponent == 0:
        return None
    weight_V = split.weights_V.astype(np.float64) ** exponent
    return np.asarray(np.bincount(split.labels.values, weight_V, n_labels), np.float64)


def repeated_queries(texts: Iterable[str], training_texts: Iterable[str]) -> NDArray[np.bool_] | None:
    """Return for Q queries whether a training query has the same identity; None if there is none."""
    identities = [query_identity(text) for text in texts]
    repeated = set(identities).intersection(map(query_identity, training_texts))
    return np.array([identity in repeated for identity in identities], np.bool_) if repeated else None


def label_ages(dataset: Dataset, split: str) -> NDArray[np.float32] | None:
    """Return the days from each label's first day in the log to the first day of the split [L]; NaN: unknown.

    0 and less: first seen in the split's period. None if the dataset has no such days.
    """
    first_seen_L, period = dataset.label_days.get("first_seen"), dataset.meta.period
    starts = {"validation": period.validation_from, "test": period.test_from} if period else {}
    if first_seen_L is None or not (start := starts.get(split)):
        return None
    age_L = np.datetime64(start, "D") - first_seen_L
    return np.where(np.isnat(first_seen_L), np.nan, age_L.astype(np.int64)).astype(np.float32)
