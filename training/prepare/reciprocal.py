"""Reciprocal pairs: (q, l) where l is itself a query that has q among its labels. A model sees one and knows the other.

Sources like thesauri and related-product sets leave such pairs out of their test rows. A validation split cut from
their training rows has to leave them out as well, or it rewards what the test split does not count.

Shapes: L labels, R rows, N chosen rows, P pairs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.ragged import Ragged


def label_of_text(texts: Any, label_texts: Any) -> npt.NDArray[np.int64]:
    """R label numbers: the label whose text is the row's own, −1 where there is none (Arrow strings in)."""
    known = pa.chunked_array(label_texts, pa.large_string()).combine_chunks()
    places = pc.index_in(texts.cast(pa.large_string()), value_set=known)
    return np.asarray(pc.fill_null(places, -1)).astype(np.int64)


def reversed_pairs(own_R: npt.NDArray[np.int64], labels: Ragged, learned_R: npt.NDArray[np.bool_]) -> Ragged:
    """For each of R rows the labels whose own row, one of those to learn from, has this row's text as a label.

    `own_R` is `label_of_text` of the rows; `learned_R` says which rows are learned from.
    """
    row_P = labels.row_of_value
    known_P = learned_R[row_P] & (own_R[row_P] >= 0)
    listed_P, lister_P = labels.values[known_P].astype(np.int64), own_R[row_P[known_P]]
    n_labels = int(max(own_R.max(initial=-1), labels.values.max(initial=-1))) + 1
    order_P = np.argsort(listed_P, kind="stable")
    listers = Ragged.from_lengths(lister_P[order_P].astype(np.int32), np.bincount(listed_P, minlength=n_labels + 1))
    nobody = n_labels  # a row whose text is no label: nothing can list it
    return listers.take(np.where(own_R >= 0, own_R, nobody))


def left_out(reversed_N: Ragged, labels_N: Ragged, exclude_N: Ragged) -> bool:
    """Whether these rows leave out their reciprocal pairs: `exclude` names some, and none is left among the labels."""
    return bool(reversed_N.overlap(exclude_N).any()) and not reversed_N.overlap(labels_N).any()
