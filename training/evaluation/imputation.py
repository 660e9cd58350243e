"""Impute classifier rows of untrained labels from their nearest trained neighbours.

    ψ̂ = m − (1−κ)⟨m, c⟩c

m is the mean of N(ψ) over the NEIGHBOURS trained labels nearest by ⟨Φ_D(z), Φ_D(z')⟩. c is the unit direction of the
mean trained row: trained rows lie in a cone around it, because a binary loss pushes every row away from most queries.
Untrained labels had no such push. κ, the cone fraction, is the share of the component along c that an imputed row
keeps: the larger κ, the lower untrained labels rank. Validation selects κ (docs/decisions/0030, 0084).

Shapes: L labels, T trained, U untrained, V distinct dual vectors of untrained labels, B labels of a block, D and C
widths of the dual and classifier vectors, K neighbours.
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
from retrieval.system.progress import Progress, no_progress

NEIGHBOURS = 5
CONE_FRACTIONS = (0.5, 0.75, 1.0, 0.25)  # candidates for κ; the first one wins a tie
# Up to either limit, every pair of a trained and an untrained label is compared. A graph costs as much as comparing
# 40,000 labels directly, for any number of trained labels (docs/decisions/0091).
MAX_EXACT_PAIRS, MAX_EXACT_LABELS = 1 << 32, 40_000
MAX_COPIED_VALUES = 1 << 27  # of trained labels' dual vectors; beyond, they are gathered block by block
LABELS_PER_BLOCK = 8_192


@dataclass(frozen=True)
class Imputation:
    """Rows of the untrained labels [U], their neighbours' mean m [U, C], and c [C] (unit length, or zero)."""

    label_U: NDArray[np.int64]
    mean_UC: Tensor
    direction_C: Tensor

    def rows(self, cone_fraction: float, start: int = 0, stop: int | None = None) -> Tensor:
        """Compute ψ̂ of the untrained labels from `start` to `stop`, float32, for κ = `cone_fraction`."""
        mean_BC = self.mean_UC[start:stop]
        # Not a BLAS product: its order of summation depends on a row's position, and equal rows must stay equal.
        along_B1 = (mean_BC * self.direction_C).sum(dim=1, keepdim=True)
        return mean_BC - (1 - cone_fraction) * along_B1 * self.direction_C


@torch.inference_mode()
def impute(
    dual_LD: NDArray[np.float32],
    classifier_LC: Tensor,
    trained_L: NDArray[np.bool_],
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Imputation:
    """Average the classifier rows of every untrained label's neighbours; zeros if no label is trained.

    `dual_LD` are the labels' dual vectors, all of one length; `classifier_LC` the raw rows ψ, on any device. Labels
    with equal dual vectors have the same neighbours, so each distinct vector is searched once.
    """
    trained_T, untrained_U = np.flatnonzero(trained_L), np.flatnonzero(~trained_L)
    mean_UC = torch.zeros(len(untrained_U), classifier_LC.shape[1], device=classifier_LC.device)
    if not len(trained_T) or not len(untrained_U):
        return Imputation(untrained_U, mean_UC, mean_UC.new_zeros(mean_UC.shape[1]))
    equal = nodes_of(dual_LD[untrained_U])
    distinct_V = untrained_U[equal.representatives]
    search = _trained_search(dual_LD, trained_T, len(distinct_V), threads)
    mean_VC = mean_UC.new_empty(len(distinct_V), mean_UC.shape[1])
    for start in range(0, len(distinct_V), LABELS_PER_BLOCK):
        block = slice(start, start + LABELS_PER_BLOCK)
        neighbours_BK = search(dual_LD[distinct_V[block]], NEIGHBOURS)
        mean_VC[block] = _unit_rows(classifier_LC, neighbours_BK).mean(dim=1)
        progress(min(block.stop, len(distinct_V)), len(distinct_V))
    if len(distinct_V) < len(untrained_U):
        mean_VC = mean_VC[torch.from_numpy(equal.node_L).to(mean_VC.device).long()]
    return Imputation(untrained_U, mean_VC, F.normalize(_sum_of_unit_rows(classifier_LC, trained_T), dim=0))


@torch.inference_mode()
def impute_copies(
    dual_LD: NDArray[np.float32], classifier_LC: Tensor, trained_L: NDArray[np.bool_], original_X: NDArray[np.int64]
) -> Tensor:
    """Return m [X, C] of copies of the trained labels `original_X`, as if they were untrained.

    A copy's original is not one of its neighbours. At least two labels must be trained.
    """
    trained_T = np.flatnonzero(trained_L)
    search = _trained_search(dual_LD, trained_T, len(original_X), torch.get_num_threads())
    mean_XC = torch.zeros(len(original_X), classifier_LC.shape[1], device=classifier_LC.device)
    for start in range(0, len(original_X), LABELS_PER_BLOCK):
        original_B = original_X[start : start + LABELS_PER_BLOCK]
        nearest_BK = search(dual_LD[original_B], min(NEIGHBOURS + 1, len(trained_T)))
        others_first_BK = np.argsort(nearest_BK == original_B[:, None], axis=1, kind="stable")
        neighbours_BK = np.take_along_axis(nearest_BK, others_first_BK[:, : nearest_BK.shape[1] - 1], axis=1)
        mean_XC[start : start + LABELS_PER_BLOCK] = _unit_rows(classifier_LC, neighbours_BK).mean(dim=1)
    return mean_XC


def _trained_search(
    dual_LD: NDArray[np.float32], trained_T: NDArray[np.int64], untrained: int, threads: int | None
) -> Callable[[NDArray[np.float32], int], NDArray[np.int64]]:
    """Return a function that returns the rows of the nearest trained labels [B, K] of dual vectors [B, D]."""
    exact = len(trained_T) * untrained <= MAX_EXACT_PAIRS or untrained <= MAX_EXACT_LABELS
    if exact and len(trained_T) * dual_LD.shape[1] > MAX_COPIED_VALUES:
        whole = ExactIndex(dual_LD, threads)
        return lambda vectors_BD, count: whole.search(vectors_BD, count, among_S=trained_T)[0]
    trained_TD = np.ascontiguousarray(dual_LD[trained_T])
    index: VectorIndex = (
        ExactIndex(trained_TD, threads)
        if exact
        else HnswIndex.build(trained_TD, m=16, ef_construction=64, ef=64, threads=threads)
    )
    return lambda vectors_BD, count: trained_T[index.search(vectors_BD, count)[0]]


def _unit_rows(classifier_LC: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """Gather N(ψ): the shape of `rows` followed by C."""
    return F.normalize(classifier_LC[torch.from_numpy(rows).to(classifier_LC.device)].float(), dim=-1)


def _sum_of_unit_rows(classifier_LC: Tensor, rows_T: NDArray[np.int64]) -> Tensor:
    total_C = torch.zeros(classifier_LC.shape[1], device=classifier_LC.device)
    for start in range(0, len(rows_T), LABELS_PER_BLOCK):
        total_C += _unit_rows(classifier_LC, rows_T[start : start + LABELS_PER_BLOCK]).sum(dim=0)
    return total_C
