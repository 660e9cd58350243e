"""Make source data from the weighted pairs of a click log, the SQL table `pairs`.

Rows are in the order of the queries and splits, labels in the order of their numbers.
Shapes: Q queries of the log, R rows of the dataset, V positives of all rows, E exposures, N pairs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.ragged import Ragged
from training.prepare.clicks.labels import LogLabels
from training.prepare.clicks.vocabulary import Vocabulary
from training.prepare.clicks.weights import EXPOSURE, POSITIVE
from training.prepare.source_data import UNSPLIT, Positives, SourceData, text_column

LEAST_WEIGHT = 1e-6  # of a positive whose clicks have decayed


def source_data(
    connection: Any, vocabulary: Vocabulary, hash_Q2: npt.NDArray[np.uint64], labels: LogLabels, listed: int,
    *, dates: bool,
) -> SourceData:  # fmt: skip
    """Return the rows, labels and exposures of a log. `listed`: labels that come from a label table."""
    days = ", first_day, last_day" if dates else ""
    pairs = _select(connection, f"weight::FLOAT AS weights{days}", f"kind = {POSITIVE}")
    iid_V, split_V = np.asarray(pairs["iid"]), np.asarray(pairs["split"])
    key_V = _row_key(iid_V, split_V)
    first_R = np.flatnonzero(np.diff(key_V, prepend=-1))  # the pairs are sorted
    key_R, iid_R, lengths_R = key_V[first_R], iid_V[first_R], np.diff(first_R, append=len(key_V))
    texts_Q = vocabulary.most_frequent_spellings()
    shown = _select(connection, f"impressions{days}", f"kind = {EXPOSURE} AND impressions > 0")
    exposures = _exposures(shown, labels.number_of_lid, texts_Q, hash_Q2, key_R) if shown.num_rows else None
    return SourceData(
        label_ids=labels.ids,
        label_texts=labels.texts,
        label_columns=labels.columns,
        is_label_L=labels.is_label_L,
        ids=text_column([str(row) for row in range(1, len(iid_R) + 1)]),
        texts=text_column(pa.chunked_array([texts_Q.take(pa.array(iid_R))])),
        split_R=split_V[first_R],
        hash_R2=hash_Q2[iid_R],
        positives=_positives(pairs, labels.number_of_lid, lengths_R),
        exclude=Ragged.empty(len(iid_R)),
        listed=listed,
        from_pairs=True,
        exposures=exposures,
    )


def _select(connection: Any, columns: str, condition: str) -> Any:
    return connection.sql(
        f"SELECT iid, split, lid, {columns} FROM pairs WHERE {condition} ORDER BY iid, split, lid"
    ).to_arrow_table()


def _row_key(iid_N: npt.NDArray[np.int32], split_N: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Return a number per (query, split), in the order of both."""
    return iid_N.astype(np.int64) * 4 + split_N - UNSPLIT


def _positives(pairs: Any, number_of_lid: npt.NDArray[np.int32], lengths_R: npt.NDArray[np.int64]) -> Positives:
    labels = Ragged.from_lengths(number_of_lid[np.asarray(pairs["lid"])], lengths_R)
    columns = {name: np.asarray(pairs[name]) for name in pairs.column_names[3:]}
    columns["weights"] = np.maximum(columns["weights"], LEAST_WEIGHT)
    if (columns["weights"] == 1).all():
        del columns["weights"]
    return Positives(labels, columns)


def _exposures(
    pairs: Any, number_of_lid: npt.NDArray[np.int32], texts_Q: Any, hash_Q2: npt.NDArray[np.uint64],
    key_R: npt.NDArray[np.int64],
) -> Any:  # fmt: skip
    """Return the table of exposures of SourceData. key_R: sorted `_row_key` of each row of the dataset."""
    iid_E = np.asarray(pairs["iid"])
    key_E = _row_key(iid_E, np.asarray(pairs["split"]))
    row_E = np.searchsorted(key_R, key_E).astype(np.int32)
    has_row_E = np.append(key_R, -1)[row_E] == key_E
    columns = {
        "query": text_column(pa.chunked_array([texts_Q.take(pairs["iid"].combine_chunks())])),
        "hash_1": hash_Q2[iid_E, 0],
        "row": pa.array(row_E, mask=~has_row_E),
        "split": pairs["split"],
        "label": number_of_lid[np.asarray(pairs["lid"])],
    }
    return pa.table({**columns, **{name: pairs[name] for name in pairs.column_names[3:]}})
