"""Check an HNSW index file before hnswlib reads it: hnswlib trusts every number and would read out of bounds.

Layout of hnswlib 0.8.0 (`HierarchicalNSW::saveIndex`):
1. a header;
2. for each element: its links on the ground level, its vector and its label;
3. for each element: the size in bytes of its links on higher levels, 0 for most elements, and these links.
A list of links has a fixed size. Its first word is the number of links, in the lower half; the upper half marks deleted
elements.

Suffixes: N elements, B elements of a block, M links of a list, W words of part 3, E elements on higher levels, F words
that are not zero, K lists, X words of an element or a list.
"""

import math
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BundleError

HEADER = struct.Struct("<6QiI3QdQ")
MAX_LEVELS = 64
ELEMENTS_PER_BLOCK = 512  # a block fits into the processor's cache
LARGEST_COUNT = 0xFFFF  # in the lower half of a list's first word

Words = NDArray[np.uint32]
Buffer = bytes | memoryview


@dataclass(frozen=True)
class Header:
    """The fields of a valid header that the checks of the links need."""

    count: int
    element_bytes: int
    data_offset: int
    label_offset: int
    links: int
    ground_links: int
    top_level: int
    entry: int


def check_index_file(path: Path, dim: int, size: int) -> None:
    """Raise BundleError unless `path` is a graph of `size` vectors of width `dim` that can be searched safely.

    Every link must lead to an existing element on the same level, and every label must occur once.
    """
    with path.open("rb", buffering=0) as file:
        for _ in read_checked(path, file, dim, size):
            pass


def read_checked(path: Path, file: FileIO, dim: int, size: int) -> Iterator[Buffer]:
    """Yield the bytes of an open file in blocks, each checked as by `check_index_file`; `path` is for errors.

    Callers hash the blocks. Checking a block while it is in the processor's cache is cheap.
    """
    length = os.fstat(file.fileno()).st_size
    head = file.read(HEADER.size)
    header = check_header(path, head, length, dim, size)
    yield head
    yield from _read_ground_level(path, file, header)
    above = file.read(length)
    if len(above) % 4:
        raise _invalid(path, "the size of its last part is not a multiple of four bytes")
    _check_higher_levels(path, header, np.frombuffer(above, np.uint32))
    yield above


def check_header(path: Path, head: bytes, length: int, dim: int, size: int) -> Header:
    """Raise BundleError unless the header fits `size` vectors of width `dim` and the file is long enough for them."""
    if len(head) < HEADER.size:
        raise BundleError(f"{path}: {length} bytes are too few for an index. Export the bundle again.")
    (offset_level0, max_elements, count, element_bytes, label_offset, data_offset, top_level, entry, *rest) = (
        HEADER.unpack(head)
    )
    max_m, max_m0, m, multiplier, ef_construction = rest
    vector_bytes, links_bytes = 4 * dim, 4 + 4 * max_m0
    required = {
        "number of vectors": (count, size),
        "capacity": (max(max_elements, count), max_elements),
        "bytes per vector": (label_offset - data_offset, vector_bytes),
        "bytes per element": (element_bytes, links_bytes + vector_bytes + 8),
        "offset of the links": (offset_level0, 0),
        "offset of a vector": (data_offset, links_bytes),
        "links per node": (max_m, m),
        "links per node on the ground level": (max_m0, 2 * m),
        "entry point": (entry, min(entry, max(count, 1) - 1)),
        "top level": (top_level, min(max(top_level, 0), MAX_LEVELS)),
        "ef_construction": (ef_construction, max(ef_construction, m)),
    }
    for name, (actual, expected) in required.items():
        if actual != expected:
            raise BundleError(f"{path}: the {name} is {actual}, not {expected}. Export the bundle again.")
    if m < 2 or not math.isclose(multiplier, 1 / math.log(m), rel_tol=1e-6):
        raise BundleError(
            f"{path}: {m} links per node do not fit the level factor {multiplier}. Export the bundle again."
        )
    if length < HEADER.size + count * (element_bytes + 4):
        raise BundleError(f"{path}: {length} bytes are too few for {count} vectors. Export the bundle again.")
    return Header(count, element_bytes, data_offset, label_offset, m, max_m0, top_level, entry)


def _read_ground_level(path: Path, file: FileIO, header: Header) -> Iterator[Buffer]:
    """Yield the elements in blocks, and check their links and labels. Vectors need no check: any bytes are safe."""
    buffer_BX = np.empty((min(ELEMENTS_PER_BLOCK, header.count), header.element_bytes // 4), np.uint32)
    vector, label = header.data_offset // 4, header.label_offset // 4
    seen_N = np.zeros(header.count, np.bool_)
    for start in range(0, header.count, ELEMENTS_PER_BLOCK):
        words_BX = buffer_BX[: header.count - start]
        if file.readinto(words_BX.data.cast("B")) != words_BX.nbytes:
            raise _invalid(path, "the file became shorter while it was read")
        _check_links(path, words_BX[:, 0], words_BX[:, 1:vector], header.count)
        low_B, high_B = words_BX[:, label], words_BX[:, label + 1]
        if high_B.any() or int(low_B.max()) >= header.count:
            raise _invalid(path, f"a label is larger than {header.count - 1}")
        seen_N[low_B] = True
        yield words_BX.data
    if not seen_N.all():
        raise _invalid(path, f"label {int(seen_N.argmin())} is missing")


def _check_higher_levels(path: Path, header: Header, words_W: Words) -> None:
    """Check the number of levels of each element, and its links on higher levels."""
    list_words = 1 + header.links
    element_E, begin_E, levels_E = _elements_on_higher_levels(path, header.count, list_words, words_W)
    level_N = np.zeros(header.count, np.int64)
    level_N[element_E] = levels_E
    if int(level_N.max()) != header.top_level or int(level_N[header.entry]) != header.top_level:
        raise _invalid(path, f"its entry point is not on the top level, {header.top_level}")
    if not len(element_E):
        return
    level_K = np.arange(levels_E.sum()) - np.repeat(np.cumsum(levels_E) - levels_E, levels_E) + 1
    begin_K = np.repeat(begin_E, levels_E) + (level_K - 1) * list_words
    lists_KX = words_W[begin_K[:, None] + np.arange(list_words)]
    first_K, linked_KM = lists_KX[:, 0], lists_KX[:, 1:]
    _check_links(path, first_K, linked_KM, header.count)
    used_KM = np.arange(header.links) < first_K[:, None]
    if (used_KM & (level_N[np.where(used_KM, linked_KM, 0)] < level_K[:, None])).any():
        raise _invalid(path, "a link leads to an element that is not on the same level")


def _elements_on_higher_levels(
    path: Path, count: int, list_words: int, words_W: Words
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return elements on higher levels, the word at which the links of each begin, and its number of levels.

    Elements between them have the size 0 and are skipped together.
    """
    # Indexing a memoryview gives Python numbers one at a time; a list of all of them would take longer than the loop.
    word_W, filled_F, rows = words_W.data, np.flatnonzero(words_W).data, []
    element = place = at = words = 0
    while element < count:
        at = bisect_left(filled_F, place, at, min(at + words, len(filled_F)))
        following = filled_F[at] if at < len(filled_F) else len(word_W)
        skipped = min(following - place, count - element)
        element, place = element + skipped, place + skipped
        if element == count:
            break
        if place == len(word_W):
            raise _invalid(path, f"the links of element {element} on higher levels are missing")
        levels, rest = divmod(word_W[place], 4 * list_words)
        words = 1 + levels * list_words
        if rest or levels > MAX_LEVELS or place + words > len(word_W):
            raise _invalid(
                path, f"element {element} has {word_W[place]} bytes of links on higher levels, which is not possible"
            )
        rows.append((element, place + 1, levels))
        element, place = element + 1, place + words
    if place != len(words_W):
        raise _invalid(path, f"{4 * (len(words_W) - place)} unexpected bytes are at its end")
    elements = np.array(rows, np.int64).reshape(-1, 3)
    return elements[:, 0], elements[:, 1], elements[:, 2]


def _check_links(path: Path, first_K: Words, linked_KM: Words, count: int) -> None:
    """Check lists by their first words and links: at most M links, each to one of `count` elements."""
    if int(first_K.max()) > LARGEST_COUNT:
        raise _invalid(path, "an element is marked as deleted")
    if int(first_K.max()) > linked_KM.shape[1]:
        raise _invalid(path, f"a node has {int(first_K.max())} links, more than {linked_KM.shape[1]}")
    if int(linked_KM.max()) < count:  # words after the end of a list are zero or earlier links
        return
    if ((np.arange(linked_KM.shape[1]) < first_K[:, None]) & (linked_KM >= count)).any():
        raise _invalid(path, f"a link leads beyond the {count} elements")


def _invalid(path: Path, reason: str) -> BundleError:
    return BundleError(f"{path}: {reason}. Export the bundle again.")
