"""What the classifier may be taken to say of a label that no query taught it: what it says of the nearest labels.

    ψ̂ = m − (1−κ)⟨m, c⟩c,    m the mean of N(ψ) over the NEIGHBOURS trained labels nearest by ⟨Φ_D(z), Φ_D(z')⟩

c is the direction of the mean trained row. A binary loss tells every trained row "no" along it far more often than
"yes"; nobody said so to an untrained one. κ is how much of that is taken over: the more, the farther behind the
trained labels it stands. Validation chooses κ, as it chooses the weight.

Shapes: L labels, T trained, U untrained, V of distinct dual halves among these, B of a block, D and C widths of the
halves, K neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from retrieval.search.distinct_vectors import nodes_of
from retrieval.search.indexes import ExactIndex, HnswIndex, VectorIndex

NEIGHBOURS = 5
KEPT = (0.5, 1.0, 0.25)  # values of κ that are tried; of equals the first (docs/decisions/0030)
MOST_PAIRS = 1 << 32  # of trained and untrained labels that are compared one by one; beyond, a graph is asked
LABELS_PER_BLOCK = 8_192

Progress = Callable[[int, int], object]  # called with (labels done, labels in all)


@dataclass(frozen=True)
class Imputed:
    """The untrained labels [U], what their neighbours say in the mean [U, C], and c [C], of unit length or zero."""

    label_U: NDArray[np.int64]
    mean_UC: Tensor
    direction_C: Tensor

    def rows(self, kept: float, start: int = 0, stop: int | None = None) -> Tensor:
        """ψ̂ of the untrained labels from place `start` to `stop`, float32, with `kept` (κ) of the part along c."""
        mean_BC = self.mean_UC[start:stop]
        # Not a BLAS product: its order of summation depends on a row's position, and equal rows must stay equal.
        along_B1 = (mean_BC * self.direction_C).sum(dim=1, keepdim=True)
        return mean_BC - (1 - kept) * along_B1 * self.direction_C


@torch.inference_mode()
def impute(
    dual_LD: NDArray[np.float32],
    classifier_LC: Tensor,
    trained_L: NDArray[np.bool_],
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Imputed:
    """Ask the neighbours of every untrained label; they say nothing, zeros, where no label is trained.

    Labels with equal dual halves have the same neighbours, so each distinct half is searched once.
    `dual_LD` are the labels' dual halves, of one length; `classifier_LC` the raw rows ψ, on any device.
    """
    trained_T, untrained_U = np.flatnonzero(trained_L), np.flatnonzero(~trained_L)
    mean_UC = torch.zeros(len(untrained_U), classifier_LC.shape[1], device=classifier_LC.device)
    if not len(trained_T) or not len(untrained_U):
        return Imputed(untrained_U, mean_UC, mean_UC.new_zeros(mean_UC.shape[1]))
    alike = nodes_of(dual_LD[untrained_U])
    distinct_V = untrained_U[alike.representatives]
    nearest = _searched(np.ascontiguousarray(dual_LD[trained_T]), len(distinct_V), threads)
    mean_VC = mean_UC.new_empty(len(distinct_V), mean_UC.shape[1])
    for start in range(0, len(distinct_V), LABELS_PER_BLOCK):
        block = slice(start, start + LABELS_PER_BLOCK)
        places_BK, _ = nearest.search(dual_LD[distinct_V[block]], NEIGHBOURS)
        mean_VC[block] = _units(classifier_LC, trained_T[places_BK]).mean(dim=1)
        progress(min(block.stop, len(distinct_V)), len(distinct_V))
    if len(distinct_V) < len(untrained_U):
        mean_VC = mean_VC[torch.from_numpy(alike.node_L).to(mean_VC.device).long()]
    return Imputed(untrained_U, mean_VC, F.normalize(_sum_of_units(classifier_LC, trained_T), dim=0))


def _searched(trained_TD: NDArray[np.float32], untrained: int, threads: int | None) -> VectorIndex:
    if len(trained_TD) * untrained <= MOST_PAIRS:
        return ExactIndex(trained_TD, threads)
    return HnswIndex.build(trained_TD, m=16, ef_construction=64, ef=64, threads=threads)


def _units(classifier_LC: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """N(ψ) of some rows, of the shape of `rows` and one more dimension, C."""
    return F.normalize(classifier_LC[torch.from_numpy(rows).to(classifier_LC.device)].float(), dim=-1)


def _sum_of_units(classifier_LC: Tensor, rows_T: NDArray[np.int64]) -> Tensor:
    total_C = torch.zeros(classifier_LC.shape[1], device=classifier_LC.device)
    for start in range(0, len(rows_T), LABELS_PER_BLOCK):
        total_C += _units(classifier_LC, rows_T[start : start + LABELS_PER_BLOCK]).sum(dim=0)
    return total_C
