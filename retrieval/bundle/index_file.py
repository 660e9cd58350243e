"""The file of an HNSW graph, checked before hnswlib sees it: hnswlib trusts every number and would read out of bounds.

Layout of hnswlib 0.8.0 (`HierarchicalNSW::saveIndex`): a header; then each element with its links on the ground level,
its vector and its label; then for each element the bytes of its links on the levels above, 0 for most, and those links.
A list of links is a count, in the lower half of a word whose upper half marks what was deleted, and room for the most.

Suffixes: N elements, B of a block, M links of a list, W words of the last part, E elements on higher levels, K lists.
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
MOST_LEVELS = 64
ELEMENTS_PER_BLOCK = 512  # which fit into the processor's cache
COUNT = 0xFFFF  # the lower half of a list's first word

Words = NDArray[np.uint32]
Buffer = bytes | memoryview


@dataclass(frozen=True)
class Header:
    """What the checks of the links need of a header that has passed its own."""

    count: int
    element_bytes: int
    data_offset: int
    label_offset: int
    links: int
    ground_links: int
    top_level: int
    entry: int


def check_index_file(path: Path, dim: int, size: int) -> None:
    """Raise BundleError unless `path` holds a graph of `size` vectors of width `dim` that can be searched.

    Every link leads to an element that is there, on its own level; every label stands once.
    """
    with path.open("rb", buffering=0) as file:
        for _ in read_checked(path, file, dim, size):
            pass


def read_checked(path: Path, file: FileIO, dim: int, size: int) -> Iterator[Buffer]:
    """Yield the bytes of an open file, block by block, each checked as in `check_index_file`; `path` is for errors.

    Hashing reads the whole file anyway, and checking a block that is in the processor's cache is cheap.
    """
    length = os.fstat(file.fileno()).st_size
    head = file.read(HEADER.size)
    header = check_header(path, head, length, dim, size)
    yield head
    yield from _ground(path, file, header)
    above = file.read(length)
    if len(above) % 4:
        raise _broken(path, "its last part is no whole number of words")
    _check_above(path, header, np.frombuffer(above, np.uint32))
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
        "bytes a vector": (label_offset - data_offset, vector_bytes),
        "bytes an element": (element_bytes, links_bytes + vector_bytes + 8),
        "offset of the links": (offset_level0, 0),
        "offset of a vector": (data_offset, links_bytes),
        "links a node": (max_m, m),
        "links a node on the ground level": (max_m0, 2 * m),
        "entry point": (entry, min(entry, max(count, 1) - 1)),
        "top level": (top_level, min(max(top_level, 0), MOST_LEVELS)),
        "ef_construction": (ef_construction, max(ef_construction, m)),
    }
    for name, (found, wanted) in required.items():
        if found != wanted:
            raise BundleError(f"{path}: the {name} is {found} where {wanted} is needed. Export the bundle again.")
    if m < 2 or not math.isclose(multiplier, 1 / math.log(m), rel_tol=1e-6):
        raise BundleError(f"{path}: {m} links a node and level factor {multiplier} disagree. Export the bundle again.")
    if length < HEADER.size + count * (element_bytes + 4):
        raise BundleError(f"{path}: {length} bytes are too few for {count} vectors. Export the bundle again.")
    return Header(count, element_bytes, data_offset, label_offset, m, max_m0, top_level, entry)


def _ground(path: Path, file: FileIO, header: Header) -> Iterator[Buffer]:
    """Links and labels of every element; a vector is only a number that leads nowhere."""
    buffer_BX = np.empty((min(ELEMENTS_PER_BLOCK, header.count), header.element_bytes // 4), np.uint32)
    vector, label = header.data_offset // 4, header.label_offset // 4
    seen_N = np.zeros(header.count, np.bool_)
    for start in range(0, header.count, ELEMENTS_PER_BLOCK):
        words_BX = buffer_BX[: header.count - start]
        if file.readinto(words_BX.data.cast("B")) != words_BX.nbytes:
            raise _broken(path, "it became shorter while it was read")
        _check_links(path, words_BX[:, 0], words_BX[:, 1:vector], header.count)
        low_B, high_B = words_BX[:, label], words_BX[:, label + 1]
        if high_B.any() or int(low_B.max()) >= header.count:
            raise _broken(path, "a label lies beyond the labels")
        seen_N[low_B] = True
        yield words_BX.data
    if not seen_N.all():
        raise _broken(path, f"label {int(seen_N.argmin())} is not in it")


def _check_above(path: Path, header: Header, words_W: Words) -> None:
    """The levels above the ground: how many each element has, and where its links there lead."""
    list_words = 1 + header.links
    element_E, begin_E, levels_E = _elements_above(path, header.count, list_words, words_W)
    level_N = np.zeros(header.count, np.int64)
    level_N[element_E] = levels_E
    if int(level_N.max()) != header.top_level or int(level_N[header.entry]) != header.top_level:
        raise _broken(path, f"its entry point does not stand on the top level, {header.top_level}")
    if not len(element_E):
        return
    level_K = np.arange(levels_E.sum()) - np.repeat(np.cumsum(levels_E) - levels_E, levels_E) + 1
    begin_K = np.repeat(begin_E, levels_E) + (level_K - 1) * list_words
    lists_KX = words_W[begin_K[:, None] + np.arange(list_words)]
    first_K, linked_KM = lists_KX[:, 0], lists_KX[:, 1:]
    _check_links(path, first_K, linked_KM, header.count)
    there_KM = np.arange(header.links) < first_K[:, None]
    if (there_KM & (level_N[np.where(there_KM, linked_KM, 0)] < level_K[:, None])).any():
        raise _broken(path, "a link leads to an element that does not stand on its level")


def _elements_above(
    path: Path, count: int, list_words: int, words_W: Words
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Elements above the ground, where the links of each begin, and its levels. Those between them say 0 and are
    skipped together."""
    # Views give Python's own numbers one at a time; a list of all of them would cost more than the loop.
    word_W, filled_F, found = words_W.data, np.flatnonzero(words_W).data, []
    element = place = at = words = 0
    while element < count:
        at = bisect_left(filled_F, place, at, min(at + words, len(filled_F)))
        following = filled_F[at] if at < len(filled_F) else len(word_W)
        skipped = min(following - place, count - element)
        element, place = element + skipped, place + skipped
        if element == count:
            break
        if place == len(word_W):
            raise _broken(path, f"the levels of element {element} are missing")
        levels, rest = divmod(word_W[place], 4 * list_words)
        words = 1 + levels * list_words
        if rest or levels > MOST_LEVELS or place + words > len(word_W):
            raise _broken(path, f"element {element} has links of {word_W[place]} bytes above the ground")
        found.append((element, place + 1, levels))
        element, place = element + 1, place + words
    if place != len(words_W):
        raise _broken(path, f"{4 * (len(words_W) - place)} bytes stand behind its end")
    elements = np.array(found, np.int64).reshape(-1, 3)
    return elements[:, 0], elements[:, 1], elements[:, 2]


def _check_links(path: Path, first_K: Words, linked_KM: Words, count: int) -> None:
    """Lists by their first word and their links: as many as have room, each to one of `count` elements."""
    if int(first_K.max()) > COUNT:
        raise _broken(path, "an element is marked as deleted")
    if int(first_K.max()) > linked_KM.shape[1]:
        raise _broken(path, f"a node has {int(first_K.max())} links where {linked_KM.shape[1]} have room")
    if int(linked_KM.max()) < count:  # what stands behind a list's end is zero, or a link that was there before
        return
    if ((np.arange(linked_KM.shape[1]) < first_K[:, None]) & (linked_KM >= count)).any():
        raise _broken(path, f"a link leads beyond its {count} elements")


def _broken(path: Path, how: str) -> BundleError:
    return BundleError(f"{path}: {how}. Export the bundle again.")
