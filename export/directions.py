"""The label vectors' principal directions: few numbers a label for the index, most of what tells labels apart.

Shapes: L labels, N distinct vectors, B of a chunk, D vector width, W directions.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.geometry import LABELS_A_CHUNK
from retrieval.search.indexes import Vectors

ENERGY = 0.87  # of what tells labels apart that the directions keep; docs/decisions/0031 has the figures
LANES = 16  # numbers that the index's inner product takes at a time


def principal_directions(vectors_LD: Vectors, dual_dim: int) -> tuple[Vectors, float]:
    """The fewest directions [D, W] that keep `ENERGY`, at right angles, and the share that they keep.

    What counts is how labels differ: their mean is the first direction, and the others are those of most variance
    around it, where both halves have the same; else a weight at which the lesser half decides would find little.
    Memory is that of one chunk, whatever the number of labels.
    """
    mean_D, variance_DD = _moments(vectors_LD)
    scale_D = np.ones(len(mean_D))
    for half in (slice(None, dual_dim), slice(dual_dim, None)):
        scale_D[half] = np.sqrt(np.trace(variance_DD[half, half])) or 1.0
    energy_D, turned_DD = np.linalg.eigh(variance_DD / np.outer(scale_D, scale_D))
    kept_D = np.cumsum(np.maximum(energy_D[::-1], 0.0)) / max(energy_D.sum(), np.finfo(float).tiny)
    beside_mean = min(int(np.searchsorted(kept_D, ENERGY)) + 1, len(kept_D))
    width = min(LANES * -(-(1 + beside_mean) // LANES), len(kept_D))
    span_DW = np.concatenate([mean_D[:, None], turned_DD[:, ::-1] * scale_D[:, None]], axis=1)[:, :width]
    directions_DW = np.linalg.qr(span_DW)[0]
    energy = 1.0 if width == len(kept_D) else min(float(kept_D[width - 2]), 1.0)
    return np.ascontiguousarray(directions_DW, np.float32), energy


def _moments(vectors_LD: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and covariance [D, D]."""
    dim = vectors_LD.shape[1]
    sum_D, moment_DD = np.zeros(dim), np.zeros((dim, dim))
    for start in range(0, len(vectors_LD), LABELS_A_CHUNK):
        chunk_BD = np.asarray(vectors_LD[start : start + LABELS_A_CHUNK], np.float64)
        sum_D += chunk_BD.sum(axis=0)
        moment_DD += chunk_BD.T @ chunk_BD
    mean_D = sum_D / len(vectors_LD)
    variance_DD = moment_DD / len(vectors_LD) - np.outer(mean_D, mean_D)
    # If all labels are equal, the difference is rounding error, and may be negative.
    rounding_D = 1e-12 * np.diagonal(moment_DD) / len(vectors_LD)
    variance_DD[np.diagonal(variance_DD) <= rounding_D] = 0.0
    variance_DD[:, np.diagonal(variance_DD) <= rounding_D] = 0.0
    return mean_D, variance_DD


def write_narrowed(vectors_LD: Vectors, row_N: NDArray[np.int64], directions_DW: Vectors, path: Path) -> Vectors:
    """Write the projections [N, W] of the vectors `row_N` to a file.

    Computed in float64, so equal vectors stay equal at any position in a chunk.
    """
    shape = (len(row_N), directions_DW.shape[1])
    narrow_NW: np.memmap[Any, np.dtype[np.float32]]
    narrow_NW = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(row_N), LABELS_A_CHUNK):
        chunk_BD = np.asarray(vectors_LD[row_N[start : start + LABELS_A_CHUNK]], np.float64)
        narrow_NW[start : start + LABELS_A_CHUNK] = chunk_BD @ directions_DW.astype(np.float64)
    return narrow_NW
