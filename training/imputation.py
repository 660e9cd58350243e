"""What the classifier may be taken to say of a label that no query taught it: what it says of the nearest labels.

    ψ̂ = m − ½⟨m, c⟩c,    m the mean of N(ψ) over the NEIGHBOURS trained labels nearest by ⟨Φ_D(z), Φ_D(z')⟩

c is the direction of the mean trained row. A binary loss tells every trained row "no" along it far more often than
"yes"; nobody said so to an untrained one, and taking over all of it would put that label behind all others.

Shapes: L labels, T trained, U untrained, B of a block, D and C widths of the halves, K neighbours.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from retrieval.index import ExactIndex, HnswIndex, VectorIndex

NEIGHBOURS = 5
CONE_KEPT = 0.5  # of the part along c; measured in docs/decisions/0030
MOST_PAIRS = 1 << 32  # of trained and untrained labels that are compared one by one; beyond, a graph is asked
LABELS_A_BLOCK = 8_192

Progress = Callable[[int, int], object]  # called with (labels done, labels in all)


@torch.inference_mode()
def imputed_rows(
    dual_LD: NDArray[np.float32],
    classifier_LC: Tensor,
    trained_L: NDArray[np.bool_],
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Tensor:
    """ψ̂ of every untrained label, float32 [U, C], in the order of their rows; zero where no label is trained.

    `dual_LD` are the labels' dual halves, of one length; `classifier_LC` the raw rows ψ, on any device.
    """
    trained_T, untrained_U = np.flatnonzero(trained_L), np.flatnonzero(~trained_L)
    rows_UC = torch.zeros(len(untrained_U), classifier_LC.shape[1], device=classifier_LC.device)
    if not len(trained_T) or not len(untrained_U):
        return rows_UC
    nearest = _searched(np.ascontiguousarray(dual_LD[trained_T]), len(untrained_U), threads)
    direction_C = F.normalize(_sum_of_units(classifier_LC, trained_T), dim=0)
    for start in range(0, len(untrained_U), LABELS_A_BLOCK):
        block = slice(start, start + LABELS_A_BLOCK)
        places_BK, _ = nearest.search(dual_LD[untrained_U[block]], NEIGHBOURS)
        mean_BC = _units(classifier_LC, trained_T[places_BK]).mean(dim=1)
        rows_UC[block] = mean_BC - (1 - CONE_KEPT) * (mean_BC @ direction_C)[:, None] * direction_C
        progress(min(block.stop, len(untrained_U)), len(untrained_U))
    return rows_UC


def _searched(trained_TD: NDArray[np.float32], untrained: int, threads: int | None) -> VectorIndex:
    if len(trained_TD) * untrained <= MOST_PAIRS:
        return ExactIndex(trained_TD, threads)
    return HnswIndex.build(trained_TD, m=16, ef_construction=64, ef=64, threads=threads)


def _units(classifier_LC: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """N(ψ) of some rows, of the shape of `rows` and one more dimension, C."""
    return F.normalize(classifier_LC[torch.from_numpy(rows).to(classifier_LC.device)].float(), dim=-1)


def _sum_of_units(classifier_LC: Tensor, rows_T: NDArray[np.int64]) -> Tensor:
    total_C = torch.zeros(classifier_LC.shape[1], device=classifier_LC.device)
    for start in range(0, len(rows_T), LABELS_A_BLOCK):
        total_C += _units(classifier_LC, rows_T[start : start + LABELS_A_BLOCK]).sum(dim=0)
    return total_C
