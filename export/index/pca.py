"""Project label vectors to their principal directions, so that the index stores fewer numbers per label.

Shapes: L labels, N distinct vectors, B vectors of a chunk, D vector width, W directions.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.geometry import LABELS_PER_CHUNK
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.indexes import Vectors

ENERGY = 0.87  # share of the variance that the projection keeps; figures in docs/decisions/0031
SIMD_WIDTH = 16  # the index's inner product processes this many numbers at a time


def fit_projection(vectors_LD: LabelVectors, dual_dim: int) -> tuple[Vectors, float]:
    """Return the fewest orthonormal directions [D, W] that keep the share ENERGY of the variance, and that share."""
    directions_DD, energy_D = fit_directions(vectors_LD, dual_dim)
    width = width_of_energy(energy_D)
    return first_directions(directions_DD, width), float(energy_D[width - 1])


def width_of_energy(energy_D: NDArray[np.float64]) -> int:
    """Return the fewest directions that keep the share ENERGY of the variance, a multiple of SIMD_WIDTH or all."""
    components = min(int(np.searchsorted(energy_D[1:], ENERGY)) + 1, len(energy_D))
    return min(SIMD_WIDTH * -(-(1 + components) // SIMD_WIDTH), len(energy_D))


def first_directions(directions_DD: Vectors, width: int) -> Vectors:
    """Return the first directions [D, W]."""
    return np.ascontiguousarray(directions_DD[:, :width])


def fit_directions(vectors_LD: LabelVectors, dual_dim: int) -> tuple[Vectors, NDArray[np.float64]]:
    """Return orthonormal directions [D, D], the most important first, and the share of the variance up to each [D].

    The first direction is the mean; the others are the principal components around it. Both halves of the vectors are
    scaled to equal variance first, or searches at a weight that favours the smaller half would find little. Memory is
    bounded by one chunk.

    Hand-written because scikit-learn's PCA needs all vectors in memory, and IncrementalPCA is approximate.
    """
    mean_D, variance_DD = _moments(vectors_LD)
    scale_D = np.ones(len(mean_D))
    for half in (slice(None, dual_dim), slice(dual_dim, None)):
        scale_D[half] = np.sqrt(np.trace(variance_DD[half, half])) or 1.0
    energy_D, components_DD = np.linalg.eigh(variance_DD / np.outer(scale_D, scale_D))
    kept_share_D = np.cumsum(np.maximum(energy_D[::-1], 0.0)) / max(energy_D.sum(), np.finfo(float).tiny)
    span_DD = np.concatenate([mean_D[:, None], components_DD[:, ::-1] * scale_D[:, None]], axis=1)[:, :-1]
    directions_DD = np.linalg.qr(span_DD)[0]
    energy_D = np.minimum(np.concatenate([[0.0], kept_share_D[:-1]]), 1.0)
    energy_D[-1] = 1.0
    return np.ascontiguousarray(directions_DD, np.float32), energy_D


def _moments(vectors_LD: LabelVectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean [D] and covariance [D, D]."""
    dim = vectors_LD.shape[1]
    sum_D, moment_DD = np.zeros(dim), np.zeros((dim, dim))
    for start in range(0, len(vectors_LD), LABELS_PER_CHUNK):
        chunk_BD = np.asarray(vectors_LD[start : start + LABELS_PER_CHUNK], np.float64)
        sum_D += chunk_BD.sum(axis=0)
        moment_DD += chunk_BD.T @ chunk_BD
    mean_D = sum_D / len(vectors_LD)
    variance_DD = moment_DD / len(vectors_LD) - np.outer(mean_D, mean_D)
    # If all labels are equal, the difference is rounding error, and may be negative.
    rounding_D = 1e-12 * np.diagonal(moment_DD) / len(vectors_LD)
    variance_DD[np.diagonal(variance_DD) <= rounding_D] = 0.0
    variance_DD[:, np.diagonal(variance_DD) <= rounding_D] = 0.0
    return mean_D, variance_DD


def write_projected(vectors_LD: LabelVectors, row_N: NDArray[np.int64], projection_DW: Vectors, path: Path) -> Vectors:
    """Write the projections [N, W] of the vectors `row_N` to a file.

    Computed in float64, so equal vectors stay equal at any position in a chunk.
    """
    shape = (len(row_N), projection_DW.shape[1])
    projected_NW: np.memmap[Any, np.dtype[np.float32]]
    projected_NW = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(row_N), LABELS_PER_CHUNK):
        chunk_BD = np.asarray(vectors_LD[row_N[start : start + LABELS_PER_CHUNK]], np.float64)
        projected_NW[start : start + LABELS_PER_CHUNK] = chunk_BD @ projection_DW.astype(np.float64)
    return projected_NW
