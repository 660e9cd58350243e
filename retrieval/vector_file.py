"""Files of vectors, checked while they are read: what is no number in one would be a score in an answer.

Suffixes: L labels, B of a block, D vector width.
"""

from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError  # numpy reads an array's header as Python
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BundleError, in_a_line
from retrieval.index_file import Buffer

LARGEST = 1e6  # of a number in a vector of length one or less; scores of such are finite
LABELS_A_BLOCK = 128  # which fit into the processor's cache


def read_finite(path: Path, dim: int, size: int) -> Iterator[Buffer]:
    """The bytes of an array of float32 [L, D], block by block; raises BundleError at one that holds what is no number.

    The header in front of the array is not looked at.
    """
    head = path.stat().st_size - 4 * dim * size
    if head < 0:
        raise BundleError(f"{path} is too short for {size} vectors of {dim} numbers. Export the bundle again.")
    buffer_BD = np.empty((LABELS_A_BLOCK, dim), np.float32)
    with path.open("rb", buffering=0) as file:
        yield file.read(head)
        for start in range(0, size, LABELS_A_BLOCK):
            vectors_BD = buffer_BD[: size - start]
            if file.readinto(vectors_BD.data.cast("B")) != vectors_BD.nbytes:
                raise BundleError(f"{path} became shorter while it was read. Copy the bundle again.")
            if not (vectors_BD.max() <= LARGEST and vectors_BD.min() >= -LARGEST):  # so written, NaN is caught as well
                raise BundleError(f"{path} holds a vector that is not finite. Export the bundle again.")
            yield vectors_BD.data


def map_vectors(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The array [L, D] of a verified bundle's file, memory-mapped. Raises BundleError when it is another."""
    vectors_LD = map_array(path)
    if vectors_LD.shape != shape or vectors_LD.dtype != np.float32 or not vectors_LD.flags.c_contiguous:
        raise BundleError(f"{path} holds {vectors_LD.dtype} of shape {vectors_LD.shape}, not float32 of {shape}.")
    return vectors_LD


def map_array(path: Path) -> NDArray[Any]:
    """Map any array of a bundle's file. Raises BundleError when it is none."""
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TypeError, OSError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise BundleError(
            f"{path} is not an array of numbers ({in_a_line(error)}). Export the bundle again."
        ) from error
    return np.asarray(mapped)  # still the mapped file; numpy's class for it makes every look-up dearer
