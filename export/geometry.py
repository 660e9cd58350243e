"""How a score is split between label and query: every split gives the same scores, some let a graph find them sooner.

A classifier half is [N(Φ_C(x)) ; √b] of a query and [N(ψ) ; √b·p] of a label, so that their inner product is the
classifier's score with the worth of popularity, b·p, in it.

Suffixes: N texts or labels, C width of the classifier half, one more than the classifier's own.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.checkpoint.opened import Checkpoint
from training.evaluation.scoring import popularity

LEAST_BALANCE, MOST_BALANCE = 0.2, 0.5  # measured in docs/decisions/0022
CONE_SHRINK = 0.5
LEAST_CONE = 0.5  # length of the mean row; below it, shrinking was measured to gain nothing
LEAST_ROWS = 10
LABELS_A_CHUNK = 8_192

Halves = NDArray[np.float32]


@dataclass(frozen=True)
class Cone:
    """The cone that trained classifier rows lie in: the unit direction of their mean, and what to shrink it by.

    A binary loss tells every row "no" far more often than "yes", in nearly the same direction. That part belongs to the
    score, but makes all labels look alike to each other, and by likeness a graph is linked.
    """

    direction_C: Halves
    shrink: float

    def shrink_labels(self, rows_NC: Halves) -> Halves:
        """ψ − (1−ε)⟨ψ, m⟩m; the inverse of `stretch_queries`."""
        return self._scaled(rows_NC, self.shrink)

    def stretch_queries(self, halves_NC: Halves) -> Halves:
        """q + (1/ε−1)⟨q, m⟩m, whose inner product with a shrunk ψ is ⟨q, ψ⟩."""
        return self._scaled(halves_NC, 1.0 / self.shrink)

    def _scaled(self, vectors_NC: Halves, factor: float) -> Halves:
        # BLAS may round equal rows differently by position; they must stay equal.
        along_N = np.einsum("nc,c->n", vectors_NC, self.direction_C)
        scaled_NC: Halves = vectors_NC + np.outer(along_N, np.float32(factor - 1.0) * self.direction_C)
        return scaled_NC


def find_cone(checkpoint: Checkpoint) -> Cone:
    """The cone of a checkpoint's trained labels; ε = 1 changes nothing: their rows share no direction."""
    total_C = np.zeros(checkpoint.model.classifier_dim + 1)
    for start in range(0, checkpoint.labels.num_rows, LABELS_A_CHUNK):
        total_C += classifier_halves(checkpoint, start, start + LABELS_A_CHUNK).sum(axis=0, dtype=np.float64)
    trained, length = int(checkpoint.trained_L.sum()), float(np.linalg.norm(total_C))
    # A diverged model's length is not finite; its labels are refused by name when their vectors are written.
    if trained < LEAST_ROWS or not LEAST_CONE * trained <= length < np.inf:
        return Cone(np.zeros(len(total_C), np.float32), 1.0)
    return Cone((total_C / length).astype(np.float32), CONE_SHRINK)


def classifier_halves(checkpoint: Checkpoint, start: int, stop: int) -> Halves:
    """[N(ψ) ; √b·p] of the labels from `start` to `stop`.

    N(ψ) is zero where the row was not trained, p where there is no training positive.
    """
    rows_NC = checkpoint.model.classifier_rows()[start:stop].detach().float()
    unit_NC: Halves = torch.nn.functional.normalize(rows_NC, dim=-1).numpy()
    unit_NC = unit_NC * checkpoint.trained_L[start:stop, None]
    return with_bias(checkpoint, unit_NC, np.arange(start, min(stop, checkpoint.labels.num_rows)))


def with_bias(checkpoint: Checkpoint, rows_NC: Halves, label_N: NDArray[np.int64]) -> Halves:
    """Rows of the classifier's own width, those of the labels `label_N`, with √b·p behind each."""
    bias_N = bias(checkpoint) * popularity(checkpoint.positives_L)[label_N]
    return np.concatenate([rows_NC, bias_N[:, None].astype(np.float32)], axis=1)


def bias(checkpoint: Checkpoint) -> float:
    """√b, the last entry of every query's classifier half."""
    return math.sqrt(checkpoint.popularity)


def balance_for(weight: float) -> float:
    """b, the classifier's share in the geometry of label vectors, for an index that is best at `weight`."""
    return min(max(weight, LEAST_BALANCE), MOST_BALANCE)
