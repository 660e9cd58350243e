"""Label vectors as 8-bit integers, with one scale per label and half. Rows become float32 when they are read.

A number is code · scale, with codes from −127 to 127. Each half has its own scale, because halves differ in length.

Suffixes: L labels, B labels of a block, D vector width, H halves, X any shape of rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_CODE = 127
Key = slice | int | np.integer[Any] | NDArray[np.integer[Any]] | NDArray[np.bool_]


class QuantizedVectors:
    """Vectors [L, D] that are read like a float32 array by rows: `vectors[rows]`, `vectors[start:stop]`, `vectors[:]`.

    Only the rows that are read are in memory as float32.
    """

    ndim = 2
    dtype = np.dtype(np.float32)  # of the rows that are read

    def __init__(self, codes_LD: NDArray[np.int8], scales_LH: NDArray[np.float32], dual_dim: int) -> None:
        """Combine codes with their scales; the first half has `dual_dim` numbers, the second, if any, the others."""
        if len(codes_LD) != len(scales_LH) or scales_LH.shape[1] != halves(codes_LD.shape[1], dual_dim):
            raise ValueError(f"codes of shape {codes_LD.shape} do not fit scales of shape {scales_LH.shape}")
        self.codes_LD, self.scales_LH, self.dual_dim = codes_LD, scales_LH, dual_dim
        self.shape = (int(codes_LD.shape[0]), int(codes_LD.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Return the number of numbers."""
        return self.shape[0] * self.shape[1]

    def __getitem__(self, rows: Key) -> NDArray[np.float32]:
        """Return rows [X, D] as float32."""
        codes_XD, scales_XH = self.codes_LD[rows], self.scales_LH[rows]
        vectors_XD = np.empty(codes_XD.shape, np.float32)
        for half, columns in enumerate(_columns(self.shape[1], self.dual_dim)):
            np.multiply(codes_XD[..., columns], scales_XH[..., half, None], out=vectors_XD[..., columns])
        return vectors_XD


LabelVectors = NDArray[np.float32] | QuantizedVectors  # [L, D]


def quantize(vectors_BD: NDArray[np.float32], dual_dim: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return codes [B, D] and scales [B, H] of vectors. Equal vectors have equal codes; a zero half has scale 0."""
    codes_BD = np.empty(vectors_BD.shape, np.int8)
    scales_BH = np.empty((len(vectors_BD), halves(vectors_BD.shape[1], dual_dim)), np.float32)
    for half, columns in enumerate(_columns(vectors_BD.shape[1], dual_dim)):
        largest_B = np.abs(vectors_BD[:, columns]).max(axis=1)
        scales_BH[:, half] = largest_B / LARGEST_CODE
        divisor_B1 = np.where(scales_BH[:, half] > 0, scales_BH[:, half], 1.0)[:, None]
        codes_BD[:, columns] = np.clip(np.rint(vectors_BD[:, columns] / divisor_B1), -LARGEST_CODE, LARGEST_CODE)
    return codes_BD, scales_BH


def halves(dim: int, dual_dim: int) -> int:
    """Return the number of halves of a vector: 2, or 1 if the first half is the whole vector."""
    return len(_columns(dim, dual_dim))


def _columns(dim: int, dual_dim: int) -> list[slice]:
    return [slice(0, dual_dim), slice(dual_dim, dim)] if dual_dim < dim else [slice(0, dim)]
