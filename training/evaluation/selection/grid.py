"""Metrics of many rankings of the same shortlists: which listed label is true is looked up once for all of them.

Every metric but C@k is a sum of gains of true labels, each times a discount of its rank, divided by a base that does
not depend on the ranking. The definitions are those of retrieval/metrics.py.

Shapes: Q queries, S labels of a shortlist, C candidates, K ranks (best first), P distinct pairs of a query and a true
label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.evaluation.ranking import DEPTH, EXCLUDED_COSINE, LabelRows, best_columns
from training.evaluation.results import EvaluationData

CANDIDATES = 16  # more than DEPTH, so that equal scores at the cut are ordered by column
TIE = 1e-12  # per column; less than the difference of two float32 scores that are not equal


def best_places(scores_QS: Tensor) -> Tensor:
    """Return the columns [Q, K] of the best scores, best first; equal scores by column."""
    column_QC = best_columns(scores_QS, CANDIDATES)
    ordered_QC = scores_QS.gather(1, column_QC).double() - TIE * column_QC
    return column_QC.gather(1, torch.topk(ordered_QC, min(DEPTH, column_QC.shape[1]), dim=1).indices)


def rows_at(row_QS: Tensor, scores_QS: Tensor) -> LabelRows:
    """Return the rows of the best scores [Q, K], best first; −1 pads short rankings."""
    place_QK = best_places(scores_QS)
    row_QK = row_QS.gather(1, place_QK).masked_fill(scores_QS.gather(1, place_QK) < EXCLUDED_COSINE / 2, -1)
    rows: LabelRows = np.full((len(row_QK), DEPTH), -1, np.int64)
    rows[:, : row_QK.shape[1]] = row_QK.cpu().numpy()
    return rows


@dataclass(frozen=True, eq=False)
class _Term:
    """One metric: Σ `gain_QS` · `discount_K` over the first k ranks, divided by `base`. Coverage if it has no gain."""

    k: int
    gain_QS: Tensor | None
    discount_K: Tensor
    base: float


class GridMetrics:
    """Computes the mean of the named metrics for scores of the labels `row_QS` (−1: no label)."""

    def __init__(self, data: EvaluationData, row_QS: Tensor, metric_names: Sequence[str]) -> None:
        self.row_QS = row_QS
        rows = row_QS.cpu().numpy()
        n_labels = 1 + max(int(rows.max(initial=0)), int(data.queries.labels.values.max(initial=0)))
        key_V = data.queries.labels.keys(n_labels)
        key_P, first_P = np.unique(key_V, return_index=True)
        key_QS = np.where(rows < 0, -1, np.arange(len(rows))[:, None] * n_labels + rows)
        place_QS = np.minimum(np.searchsorted(key_P, key_QS), len(key_P) - 1)
        true_QS = key_P[place_QS] == key_QS
        n_true_Q = np.bincount(key_P // n_labels, minlength=len(rows))
        bases = data.ratios(np.full((len(rows), 1), -1))  # of an empty ranking
        self.true_QS = torch.from_numpy(true_QS).to(row_QS.device)
        clicks_V = data.queries.weights_V
        gains = {
            "P": true_QS,
            "R": true_QS / np.maximum(n_true_Q, 1)[:, None],
            "PSP": np.where(true_QS, data.inverse_propensity_L[np.where(true_QS, rows, 0)], 0.0),
            "clicks": np.where(true_QS, 0 if clicks_V is None else clicks_V[first_P][place_QS], 0.0),
        }
        self._terms = [
            self._term(
                name, gains, n_true_Q, len(np.unique(key_P % n_labels)) if name[0] == "C" else bases[name].base_Q
            )
            for name in metric_names
        ]

    def _term(
        self,
        name: str,
        gains: dict[str, NDArray[np.float64]],
        n_true_Q: NDArray[np.int64],
        base: NDArray[np.float64] | int,
    ) -> _Term:
        kind, k = name.split("@")[0], int(name.split("@")[1])
        discount_K, gain_QS = np.ones(k), gains.get("clicks" if kind[0] == "w" else kind)
        match kind:
            case "P":
                discount_K /= k
            case "nDCG":
                discount_K = 1.0 / np.log2(np.arange(k) + 2.0)
                ideal_K = np.concatenate([[1.0], np.cumsum(discount_K)])
                gain_QS = gains["P"] / ideal_K[np.minimum(n_true_Q, k)][:, None]
        device = self.row_QS.device
        gain = None if gain_QS is None else torch.from_numpy(gain_QS).to(device, torch.float64)
        return _Term(k, gain, torch.from_numpy(discount_K).to(device), float(np.sum(base)))

    def mean(self, scores_QS: Tensor) -> float:
        """Return the mean of the metrics of one ranking, in percent."""
        place_QK = best_places(scores_QS)
        return float(np.mean([self._value(term, place_QK[:, : term.k]) for term in self._terms]))

    def _value(self, term: _Term, place_Qk: Tensor) -> float:
        if term.gain_QS is None:
            hit_Qk = self.true_QS.gather(1, place_Qk)
            return 100.0 * len(torch.unique(self.row_QS.gather(1, place_Qk)[hit_Qk])) / term.base
        gain_Qk = term.gain_QS.gather(1, place_Qk)
        return 100.0 * float((gain_Qk @ term.discount_K[: place_Qk.shape[1]]).sum()) / term.base
