"""Compare weights of pairs with the true relevance of a simulated log.

Suffixes: P pairs of the truth, N rows of the log, Q queries, W labels of a query (−1 or 0 after its last).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data.dataset import Dataset
from training.prepare.clicks.examination import estimate_examination, inverse_examination

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Recovery:
    """Agreement of weights with the truth, in percent, mean over queries by traffic.

    `ordered` is the share of label pairs of a query in the right order, ties count half. `overlap` is the share that
    the weights and the relevances of a query have in common, each divided by its sum. Both are 100 for the truth.
    """

    ordered: float
    overlap: float


class Truth:
    """The truth of a simulated log; see benchmarks/click_logs/simulated.py."""

    def __init__(self, table: Any) -> None:
        self.query_P, self.label_P = table["query"].to_pylist(), table["label"].to_pylist()
        self.relevance_P = table["relevance"].to_numpy()
        self.traffic_P = table["traffic"].to_numpy()

    @cached_property
    def row(self) -> dict[tuple[str, str], int]:
        """Return the row of each (query, label id)."""
        return {pair: row for row, pair in enumerate(zip(self.query_P, self.label_P, strict=True))}

    @cached_property
    def _place_QW(self) -> NDArray[np.int64]:
        """Return the pairs of each query, −1 after the last."""
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(self.query_P):
            rows.setdefault(query, []).append(row)
        place_QW = np.full((len(rows), max(map(len, rows.values()))), -1)
        for query_row, places in enumerate(rows.values()):
            place_QW[query_row, : len(places)] = places
        return place_QW

    def recovery(self, weight_P: FloatArray) -> Recovery:
        """Return how well weights agree with the relevance. A query whose weights are all 0 overlaps by 0."""
        place_QW, exists_QW = self._place_QW, self._place_QW >= 0
        weight_QW = np.where(exists_QW, weight_P[place_QW], 0.0)
        relevance_QW = np.where(exists_QW, self.relevance_P[place_QW], 0.0)
        traffic_Q = self.traffic_P[place_QW[:, 0]]
        higher_QWW = exists_QW[:, None] & (relevance_QW[:, :, None] > relevance_QW[:, None])
        difference_QWW = weight_QW[:, :, None] - weight_QW[:, None]
        right_Q = ((difference_QWW > 0) + 0.5 * (difference_QWW == 0)).sum(axis=(1, 2), where=higher_QWW)
        pairs_Q = higher_QWW.sum(axis=(1, 2))
        shares_QW = weight_QW / np.maximum(weight_QW.sum(axis=1, keepdims=True), 1e-300)
        truth_QW = relevance_QW / relevance_QW.sum(axis=1, keepdims=True)
        ordered_Q = right_Q / np.maximum(pairs_Q, 1)
        return Recovery(
            ordered=100 * float(np.average(ordered_Q, weights=traffic_Q * (pairs_Q > 0))),
            overlap=100 * float(np.average(np.minimum(shares_QW, truth_QW).sum(axis=1), weights=traffic_Q)),
        )

    def from_log(self, rows: Any, true_examination_K: FloatArray) -> dict[str, Recovery]:
        """Return the recovery of the log's clicks: as they are, and by estimated and by true inverse examination."""
        pairs = zip(rows["query"].to_pylist(), rows["label"].to_pylist(), strict=True)
        pair_N = np.array([self.row[pair] for pair in pairs])
        position_N, clicks_N = rows["position"].to_numpy(), rows["clicks"].to_numpy()
        cells = pa.table([pair_N, position_N, clicks_N, rows["impressions"]], ["pair", "position", "clicks", "shown"])
        cells = cells.group_by(["pair", "position"]).aggregate([("clicks", "sum"), ("shown", "sum")])
        names = ("pair", "position", "clicks_sum", "shown_sum")
        estimated_K = estimate_examination(*(cells[name].to_numpy() for name in names))
        curves = {"clicks": np.ones(1), "estimated": estimated_K, "true examination": true_examination_K}
        weights_N = {name: clicks_N * inverse_examination(position_N, curve_K) for name, curve_K in curves.items()}
        n_pairs = len(self.query_P)
        return {
            name: self.recovery(np.asarray(np.bincount(pair_N, weight_N, n_pairs), np.float64))
            for name, weight_N in weights_N.items()
        }

    def from_dataset(self, dataset: Dataset) -> Recovery:
        """Return the recovery of the click weights of the training split."""
        split, label_ids = dataset.split("train"), dataset.label_table["id"].to_pylist()
        weight_P = np.zeros(len(self.query_P))
        weight_V = np.ones(len(split.labels.values)) if split.weights_V is None else split.weights_V
        for query, label, weight in zip(split.labels.row_of_value, split.labels.values, weight_V, strict=True):
            if (row := self.row.get((split.texts[query], label_ids[label]))) is not None:
                weight_P[row] += weight
        return self.recovery(weight_P)

    def relevant_labels(self, texts: list[str], label_ids: list[str]) -> tuple[list[NDArray[np.int64]], FloatArray]:
        """Return the labels of each query text, and relevance · traffic of all of them in that order.

        With these, click-weighted metrics are of the clicks that the rankings would get at equal positions.
        """
        number = {label: row for row, label in enumerate(label_ids)}
        rows: dict[str, list[int]] = {}
        for row, (query, label) in enumerate(zip(self.query_P, self.label_P, strict=True)):
            if label in number:
                rows.setdefault(query, []).append(row)
        chosen = [rows.get(text, []) for text in texts]
        value_P = self.relevance_P * self.traffic_P
        labels = [np.array([number[self.label_P[row]] for row in of_query], np.int64) for of_query in chosen]
        return labels, value_P[[row for of_query in chosen for row in of_query]]
