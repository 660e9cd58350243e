"""Leave reciprocal pairs out of a validation split: (q, l) where l is itself a query that has q among its labels.

A model that was trained on one pair of the two knows the other. Sources such as thesauri and sets of related products
exclude these pairs from their test rows. A validation split that is cut from their training rows must exclude them too,
or validation rewards what the test split does not count.

Shapes: L labels, R rows, N selected rows, P (row, label) pairs, V labels of all rows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.ragged import Ragged


def reciprocal_pairs_of_validation(
    texts: Any, label_texts: Any, labels: Ragged, exclude: Ragged, train_R: npt.NDArray[np.bool_],
    validation_R: npt.NDArray[np.bool_], test_R: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:  # fmt: skip
    """Return V booleans: labels of validation rows to exclude; none if the test rows keep their reciprocal pairs."""
    excluded_N = exclude.select(test_R)
    if not len(excluded_N.values):
        return np.zeros(len(labels.values), np.bool_)
    label_R = label_of_text(texts, label_texts)
    reversed_N = reversed_pairs(label_R, labels, train_R | validation_R).select(test_R)
    if not are_excluded(reversed_N, labels.select(test_R), excluded_N):
        return np.zeros(len(labels.values), np.bool_)
    return labels.overlap(reversed_pairs(label_R, labels, train_R)) & validation_R[labels.row_of_value]


def label_of_text(texts: Any, label_texts: Any) -> npt.NDArray[np.int64]:
    """Return R label numbers: the label with the row's text, −1 if there is none. Both are Arrow strings."""
    known = pa.chunked_array(label_texts, pa.large_string()).combine_chunks()
    label_R = pc.index_in(texts.cast(pa.large_string()), value_set=known)
    return np.asarray(pc.fill_null(label_R, -1)).astype(np.int64)


def reversed_pairs(label_R: npt.NDArray[np.int64], labels: Ragged, train_R: npt.NDArray[np.bool_]) -> Ragged:
    """Return for each of R rows the labels whose own training row has this row's text as a label.

    `label_R` is `label_of_text` of the rows.
    """
    row_P = labels.row_of_value
    known_P = train_R[row_P] & (label_R[row_P] >= 0)
    target_P, source_P = labels.values[known_P].astype(np.int64), label_R[row_P[known_P]]
    n_labels = int(max(label_R.max(initial=-1), labels.values.max(initial=-1))) + 1
    order_P = np.argsort(target_P, kind="stable")
    sources = Ragged.from_lengths(source_P[order_P].astype(np.int32), np.bincount(target_P, minlength=n_labels + 1))
    empty_row = n_labels  # for rows whose text is not a label
    return sources.take(np.where(label_R >= 0, label_R, empty_row))


def are_excluded(reversed_N: Ragged, labels_N: Ragged, exclude_N: Ragged) -> bool:
    """Return whether rows exclude their reciprocal pairs: some are in `exclude`, and none is among the labels."""
    return bool(reversed_N.overlap(exclude_N).any()) and not reversed_N.overlap(labels_N).any()
