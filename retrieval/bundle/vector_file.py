"""Read files of vectors, and check while reading that all numbers are finite.

Suffixes: L labels, B of a block, D vector width.
"""

import math
from collections.abc import Iterator
from io import BytesIO, FileIO
from os import fstat
from pathlib import Path
from tokenize import TokenError  # numpy parses an array's header as Python
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.index_file import Buffer
from retrieval.errors import BundleError, one_line

LARGEST = 1e6  # of a number in a vector; vectors have a length of at most one, and scores up to this limit are finite
LABELS_PER_BLOCK = 128  # a block fits into the processor's cache
LONGEST_HEADER = 16_384  # bytes; numpy has a similar limit
Number = type[np.float32] | type[np.int8]


def read_finite(
    path: Path, file: FileIO, dim: int, size: int, into: NDArray[np.uint8] | None = None, dtype: Number = np.float32
) -> Iterator[Buffer]:
    """Yield the bytes of an open file with an array [L, D], block by block; `path` is for errors.

    Numbers of `dtype` int8 are always finite. `into`, if given, is an array of the file's length that receives the same
    bytes. The header in front of the array is not parsed. Raises BundleError for a file of another length, and for a
    vector that is not finite.
    """
    length = fstat(file.fileno()).st_size
    row = np.dtype(dtype).itemsize * dim  # bytes
    head = length - row * size
    if head < 0:
        raise BundleError(f"{path} is too short for {size} vectors of {dim} numbers. Export the bundle again.")
    if head > LONGEST_HEADER:
        raise BundleError(
            f"{path} has {length:,} bytes, too many for {size} vectors of {dim} numbers. Export the bundle again."
        )
    written = file.read(head)
    if len(written) != head or (into is not None and len(into) != length):
        raise BundleError(f"{path} changed while it was read. Copy the bundle again.")
    if into is None:
        buffer_BD = np.empty((min(LABELS_PER_BLOCK, size), dim), dtype)
    else:
        into[:head] = np.frombuffer(written, np.uint8)
    yield written
    for start in range(0, size, LABELS_PER_BLOCK):
        count = min(LABELS_PER_BLOCK, size - start)
        vectors_BD: NDArray[Any]
        if into is None:
            vectors_BD = buffer_BD[:count]
        else:
            place = head + row * start
            vectors_BD = into[place : place + row * count].view(dtype).reshape(count, dim)
        if file.readinto(vectors_BD.data.cast("B")) != vectors_BD.nbytes:
            raise BundleError(f"{path} changed while it was read. Copy the bundle again.")
        # written so that it is also true for NaN
        if dtype is np.float32 and not (vectors_BD.max() <= LARGEST and vectors_BD.min() >= -LARGEST):
            raise BundleError(f"{path} contains a vector that is not finite. Export the bundle again.")
        yield vectors_BD.data


def vectors_in(content: Buffer, path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """View a float32 array [L, D] in the bytes of an .npy file, named `path` in errors. Raises BundleError."""
    vectors_LD: NDArray[np.float32] = array_in(content, path, shape, np.float32)
    return vectors_LD


def array_in(content: Buffer, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """View an array of this shape and type in the bytes of an .npy file, named `path` in errors. Raises BundleError."""
    head = BytesIO(bytes(memoryview(content)[:LONGEST_HEADER]))
    try:
        version = np.lib.format.read_magic(head)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version} of the format is not supported")
        actual_shape, by_columns, actual_dtype = readers[version](head)
    except (ValueError, TypeError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise BundleError(f"{path} is not an array of numbers ({one_line(error)}). Export the bundle again.") from error
    if actual_shape != shape or actual_dtype != dtype or (by_columns and len(shape) > 1 and 1 not in shape):
        order = ", in column order" if by_columns else ""
        raise BundleError(
            f"{path} is an array of {actual_dtype} of shape {actual_shape}{order}, not of {np.dtype(dtype).name} of "
            f"shape {shape}. Export the bundle again."
        )
    expected = head.tell() + np.dtype(dtype).itemsize * math.prod(shape)
    if len(content) != expected:
        raise BundleError(f"{path} has {len(content)} bytes, not {expected}. Export the bundle again.")
    return np.frombuffer(content, dtype, offset=head.tell()).reshape(shape)
