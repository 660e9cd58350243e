"""Split scores into query and label vectors; the split changes no score, but some splits suit a graph index better.

The classifier vector of a query is [N(Φ_C(x)) ; √b], that of a label [N(ψ) ; √b·p]. Their inner product is the
classifier's score with the popularity bonus b·p.

Shapes: N texts or labels, C width of the classifier vectors, one more than the classifier's own.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.checkpoint.opened import Checkpoint
from training.evaluation.checkpoint_evaluation import selected_mix
from training.evaluation.scoring import popularity

MIN_BALANCE, MAX_BALANCE = 0.2, 0.5  # measured in docs/decisions/0022
CONE_SHRINK = 0.5
MIN_CONE_LENGTH = 0.5  # of the mean row; for a shorter one, shrinking was measured to have no benefit
MIN_TRAINED_LABELS = 10
LABELS_PER_CHUNK = 8_192

ClassifierVectors = NDArray[np.float32]


@dataclass(frozen=True)
class Cone:
    """The cone of trained classifier rows: the unit direction c [C] of their mean, and the factor ε it is shrunk by.

    A binary loss pushes every row away from most queries, in nearly the same direction. That component belongs to the
    score, but it makes all labels similar to each other, and a graph index links similar labels.
    """

    direction_C: ClassifierVectors
    shrink: float

    def apply(self, vectors_NC: ClassifierVectors) -> ClassifierVectors:
        """Shrink the component along c: ψ − (1−ε)⟨ψ, c⟩c. For label vectors."""
        return self._scaled(vectors_NC, self.shrink)

    def invert(self, vectors_NC: ClassifierVectors) -> ClassifierVectors:
        """Stretch the component along c: q + (1/ε−1)⟨q, c⟩c. For query vectors: ⟨invert(q), apply(ψ)⟩ = ⟨q, ψ⟩."""
        return self._scaled(vectors_NC, 1.0 / self.shrink)

    def _scaled(self, vectors_NC: ClassifierVectors, factor: float) -> ClassifierVectors:
        # BLAS may round equal rows differently by position; they must stay equal.
        along_N = np.einsum("nc,c->n", vectors_NC, self.direction_C)
        scaled_NC: ClassifierVectors = vectors_NC + np.outer(along_N, np.float32(factor - 1.0) * self.direction_C)
        return scaled_NC


def find_cone(checkpoint: Checkpoint) -> Cone:
    """Find the cone of a checkpoint's trained labels; ε = 1, no change, if their rows share no direction."""
    total_C = np.zeros(classifier_width(checkpoint))
    for start in range(0, checkpoint.labels.num_rows, LABELS_PER_CHUNK):
        total_C += classifier_vectors(checkpoint, start, start + LABELS_PER_CHUNK).sum(axis=0, dtype=np.float64)
    trained, length = int(checkpoint.trained_L.sum()), float(np.linalg.norm(total_C))
    # The length of a diverged model is NaN or Inf; writing its label vectors raises an error that names the label.
    if trained < MIN_TRAINED_LABELS or not MIN_CONE_LENGTH * trained <= length < np.inf:
        return Cone(np.zeros(len(total_C), np.float32), 1.0)
    return Cone((total_C / length).astype(np.float32), CONE_SHRINK)


def classifier_width(checkpoint: Checkpoint) -> int:
    """Return the width of the classifier vectors, with the bias; 0 if the model has no classifier."""
    width: int = checkpoint.unified.classifier_dim
    return width + 1 if width else 0


def classifier_vectors(checkpoint: Checkpoint, start: int, stop: int) -> ClassifierVectors:
    """Return [N(ψ) ; √b·p] of the labels from `start` to `stop`.

    N(ψ) is zero for untrained rows, p is zero without a training positive.
    """
    rows_NC = checkpoint.unified.classifier_rows()[start:stop].detach().float()
    unit_NC: ClassifierVectors = torch.nn.functional.normalize(rows_NC, dim=-1).numpy()
    unit_NC = unit_NC * checkpoint.trained_L[start:stop, None]
    return with_bias(checkpoint, unit_NC, np.arange(start, min(stop, checkpoint.labels.num_rows)))


def with_bias(checkpoint: Checkpoint, rows_NC: ClassifierVectors, label_N: NDArray[np.int64]) -> ClassifierVectors:
    """Append √b·p to the classifier rows of the labels `label_N`; a model without a classifier has no bias."""
    if not classifier_width(checkpoint):
        return rows_NC
    bias_N = bias(checkpoint) * popularity(checkpoint.label_frequency_L)[label_N]
    return np.concatenate([rows_NC, bias_N[:, None].astype(np.float32)], axis=1)


def bias(checkpoint: Checkpoint) -> float:
    """Return √b, the last entry of every query's classifier vector."""
    return math.sqrt(selected_mix(checkpoint).popularity)


def balance_for(weight: float) -> float:
    """Return the classifier's share in the geometry of label vectors, for an index that is best at `weight`."""
    return min(max(weight, MIN_BALANCE), MAX_BALANCE)
