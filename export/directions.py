"""The label vectors' principal directions: few numbers a label for the index, most of every inner product.

Shapes: L labels, B of a chunk, D vector width, W directions.
"""

from pathlib import Path
from typing import Any

import numpy as np

from export.geometry import LABELS_A_CHUNK
from retrieval.index import Vectors

ENERGY = 0.9  # of the vectors' squared length that the directions keep; docs/decisions/0031 has the figures
LANES = 16  # numbers that the index's inner product takes at a time


def principal_directions(vectors_LD: Vectors) -> tuple[Vectors, float]:
    """The fewest directions [D, W] that keep `ENERGY`, those of most energy first, and the share that they keep.

    Memory is that of one chunk, whatever the number of labels.
    """
    moment_DD = np.zeros((vectors_LD.shape[1],) * 2)
    for start in range(0, len(vectors_LD), LABELS_A_CHUNK):
        chunk_BD = np.asarray(vectors_LD[start : start + LABELS_A_CHUNK])
        moment_DD += chunk_BD.T @ chunk_BD
    energy_D, directions_DD = np.linalg.eigh(moment_DD)
    kept_D = np.cumsum(energy_D[::-1]) / max(energy_D.sum(), np.finfo(float).tiny)
    width = LANES * -(-(int(np.searchsorted(kept_D, ENERGY)) + 1) // LANES)
    width = min(width, len(kept_D))
    return np.ascontiguousarray(directions_DD[:, ::-1][:, :width], np.float32), min(float(kept_D[width - 1]), 1.0)


def write_narrowed(vectors_LD: Vectors, directions_DW: Vectors, path: Path) -> Vectors:
    """The vectors along the directions [L, W], in a file of their own.

    Summed in float64: equal vectors stay equal, whatever their place in a chunk, and the index knows them as such.
    """
    shape = (len(vectors_LD), directions_DW.shape[1])
    narrow_LW: np.memmap[Any, np.dtype[np.float32]]
    narrow_LW = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(vectors_LD), LABELS_A_CHUNK):
        chunk_BD = np.asarray(vectors_LD[start : start + LABELS_A_CHUNK], np.float64)
        narrow_LW[start : start + LABELS_A_CHUNK] = chunk_BD @ directions_DW.astype(np.float64)
    return narrow_LW
