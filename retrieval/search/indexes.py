"""Indexes for maximum inner product search, exact and approximate (hnswlib), behind one protocol.

Suffixes: Q queries, L labels, B a block of labels, D vector width, K results of a query (best
first), C candidate columns, W groups of columns, R columns in no group.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, Self

import hnswlib
import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.index_file import check_index_file
from retrieval.errors import BadInput, BundleError
from retrieval.quantized_vectors import LabelVectors, QuantizedVectors
from retrieval.search.distinct_vectors import first_equal_rows
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.limits import available_cores
from retrieval.system.progress import Progress

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

QUERIES_PER_PASS = 256
LABELS_PER_BLOCK = 65_536  # 256 × 65,536 float32 scores: 64 MB per thread for any number of labels
QUANTIZED_LABELS_PER_BLOCK = 4_096  # as float32, a block fits into the processor's cache
LABELS_PER_INSERTION = 1_024  # signals are handled and progress is reported after each insertion
TOO_FEW = "Cannot return the results"  # hnswlib's message for a query that found fewer than k
LOG = logging.getLogger("diptych.index")
COMPARED_ALL = (
    "the index found too few labels for %d queries so far; every label was compared for them, which is slow. Export "
    "the bundle with a larger --m or --ef-construction."
)
MIN_GROUP = 4  # columns; smaller groups are slower than one comparison of all columns
NOISE = 1e-4  # of a vector's length; the recall is the same from 1e-4 to 3e-2


class FullScans:
    """Count queries that compared more vectors because the index found too few; log the 1st, 10th, 100th, …."""

    def __init__(self, message: str = COMPARED_ALL) -> None:
        """`message` is logged with the number of queries so far."""
        self.queries = 0
        self._message = message
        self._logged = 1
        self._lock = Lock()

    def add(self, queries: int) -> None:
        """Add to the count. Thread-safe."""
        with self._lock:
            self.queries += queries
            due = self.queries >= self._logged
            while self._logged <= self.queries:
                self._logged *= 10
        if due:
            LOG.warning(self._message, self.queries)


class VectorIndex(Protocol):
    """An index that finds the rows with the largest inner products; tests/contract/test_index.py tests all kinds."""

    @property
    def full_scans(self) -> FullScans:
        """Return the counter of queries that fell back to a full scan."""

    def close(self) -> None:
        """Stop its threads after the searches in progress."""

    @property
    def size(self) -> int:
        """Return the number of vectors."""

    @property
    def dim(self) -> int:
        """Return the width of a vector."""

    @property
    def is_exact(self) -> bool:
        """Return whether a search compares all vectors, so that it never misses one."""

    @property
    def max_results(self) -> int | None:
        """Return the largest k of a search, which returns no more; None: any."""

    def search(self, query_QD: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return rows and inner products of min(k, size) vectors per query, best first. Raises BadInput."""


class ExactIndex:
    """An index that computes every inner product, in blocks, so memory does not grow with the number of labels."""

    is_exact = True
    max_results = None

    def __init__(self, vectors_LD: LabelVectors, threads: int | None = None) -> None:
        if vectors_LD.ndim != 2 or not vectors_LD.size:
            raise BadInput(f"an index needs vectors of shape (labels, width), not {vectors_LD.shape}")
        self._vectors_LD = vectors_LD
        self._threads = threads or available_cores()
        quantized = isinstance(vectors_LD, QuantizedVectors)
        self._block = QUANTIZED_LABELS_PER_BLOCK if quantized else LABELS_PER_BLOCK
        self.full_scans = FullScans()  # stays 0: comparing every vector is not a fallback of this index

    def close(self) -> None:
        """Do nothing: its threads end with each search."""

    @property
    def size(self) -> int:
        return int(self._vectors_LD.shape[0])

    @property
    def dim(self) -> int:
        return int(self._vectors_LD.shape[1])

    def search(self, query_QD: Vectors, k: int, among_S: Rows | None = None) -> tuple[Rows, Vectors]:
        """Return rows and inner products of the min(k, size) best vectors per query, best first. Raises BadInput.

        `among_S`: compare only these rows, in ascending order.
        """
        query_QD = checked(query_QD, k, self.dim)
        if among_S is None:
            return _search_blocks(query_QD, min(k, self.size), self._blocks, self._threads)
        places_QK, scores_QK = _search_blocks(
            query_QD, min(k, len(among_S)), lambda: self._blocks_of(among_S), self._threads
        )
        return among_S[places_QK], scores_QK

    def _blocks(self) -> Iterator[tuple[int, Vectors]]:
        for start in range(0, self.size, self._block):
            yield start, np.asarray(self._vectors_LD[start : start + self._block], np.float32)

    def _blocks_of(self, among_S: Rows) -> Iterator[tuple[int, Vectors]]:
        for start in range(0, len(among_S), self._block):
            yield start, np.asarray(self._vectors_LD[among_S[start : start + self._block]], np.float32)


class HnswIndex:
    """An index that searches hnswlib's graph. `ef` is fixed, since changing it would affect concurrent searches."""

    is_exact = False
    max_results = None

    def __init__(self, index: Any, ef: int, pool: ThreadPool) -> None:
        """Wrap a filled hnswlib.Index. Use `build` or `load`."""
        index.set_ef(ef)
        self._index = index
        self.size, self.dim = int(index.get_current_count()), int(index.dim)
        self._pool = pool
        self.ef = ef
        self.full_scans = FullScans()

    @classmethod
    def build(
        cls,
        vectors_LD: Vectors,
        *,
        m: int = 16,
        ef_construction: int = 200,
        ef: int = 64,
        threads: int | None = None,
        seed: int = 100,
        progress: Progress | None = None,
    ) -> Self:
        """Insert every vector; `m` links per node and `ef_construction` candidates trade build time for recall.

        A vector that equals an earlier one gets noise of a ten-thousandth of its length. Equal vectors would link only
        to each other, and a search could not reach a large group of them. Labels with equal vectors share a node,
        but different vectors may have equal projections.
        """
        if vectors_LD.ndim != 2 or not vectors_LD.size:
            raise BadInput(f"an index needs vectors of shape (labels, width), not {vectors_LD.shape}")
        size, dim = vectors_LD.shape
        index = hnswlib.Index(space="ip", dim=dim)
        index.init_index(max_elements=size, M=m, ef_construction=ef_construction, random_seed=seed)
        repeated_L = first_equal_rows(vectors_LD) != np.arange(size)
        for start in range(0, size, LABELS_PER_INSERTION):
            stop = min(start + LABELS_PER_INSERTION, size)
            block_BD = np.array(vectors_LD[start:stop], np.float32, order="C")
            block_BD += _noise(block_BD, repeated_L[start:stop], np.random.default_rng([seed, start]))
            index.add_items(block_BD, np.arange(start, stop), num_threads=threads or available_cores())
            if progress is not None:
                progress(stop, size)
        return cls(index, ef, ThreadPool(threads))

    @classmethod
    def load(
        cls, path: Path, dim: int, size: int, ef: int, pool: ThreadPool | None = None, *, verified: FileIO | None = None
    ) -> Self:
        """Read an index file of `size` vectors of width `dim`. Raises BundleError if it is invalid.

        `verified` is an open file that was checked already; it is read instead of `path`.
        """
        if verified is None:
            check_index_file(path, dim, size)
        # hnswlib takes only paths; this one refers to the open file.
        readable = str(path) if verified is None else f"/proc/self/fd/{verified.fileno()}"
        # A new object: loading into a used one leaks its memory and mixes its state.
        index = hnswlib.Index(space="ip", dim=dim)
        try:
            index.load_index(readable, max_elements=size)
        except RuntimeError as error:
            raise BundleError(f"{path}: hnswlib cannot read this index ({error}). Export the bundle again.") from error
        return cls(index, ef, pool or ThreadPool())

    def search(self, query_QD: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return rows and inner products of min(k, size) near vectors per query, best first. Raises BadInput.

        hnswlib examines max(ef, k) candidates, so a larger k also increases the recall.
        """
        query_QD, k = checked(query_QD, k, self.dim), min(k, self.size)
        try:
            parts = self._pool.map_parts(lambda part_PD: self._index.knn_query(part_PD, k, num_threads=1), query_QD)
        except RuntimeError as error:
            if TOO_FEW not in str(error):
                raise
            # One query found fewer than k, because part of the graph cannot be reached; hnswlib fails for all.
            self.full_scans.add(len(query_QD))
            return _search_blocks(query_QD, k, self._blocks, self._pool.threads)
        rows, distances = zip(*parts, strict=True)
        distance_QK: Vectors = np.concatenate(distances)
        return np.concatenate(rows).view(np.int64), 1.0 - distance_QK

    def close(self) -> None:
        """Stop its threads after the searches in progress."""
        self._pool.close()

    def save(self, path: Path) -> None:
        """Write the index file. Raises BundleError if it is incomplete, which hnswlib does not report itself."""
        try:
            self._index.save_index(str(path))
        except RuntimeError as error:
            raise BundleError(f"{path}: the index could not be written ({error}).") from error
        written, expected = path.stat().st_size, self._index.index_file_size()
        if written != expected:
            raise BundleError(f"{path}: {written} of {expected} bytes were written. Is the disk full?")

    def _blocks(self) -> Iterator[tuple[int, Vectors]]:
        for start in range(0, self.size, LABELS_PER_BLOCK):
            stop = min(start + LABELS_PER_BLOCK, self.size)
            yield start, np.asarray(self._index.get_items(np.arange(start, stop)), np.float32)


def _noise(block_BD: Vectors, repeated_B: NDArray[np.bool_], rng: np.random.Generator) -> Vectors:
    """Return noise for the vectors of a block: NOISE times their mean length for repeated ones, zero for others."""
    scale = NOISE * float(np.sqrt(np.mean(block_BD**2)))
    noise_BD = np.zeros_like(block_BD)
    noise_BD[repeated_B] = scale * rng.standard_normal((int(repeated_B.sum()), block_BD.shape[1]), np.float32)
    return noise_BD


def checked(query_QD: Vectors, k: int, dim: int) -> Vectors:
    """Return the queries as a contiguous float32 array of width `dim`. Raises BadInput."""
    if k < 1:
        raise BadInput(f"k is {k}; it must be at least 1")
    if query_QD.ndim != 2 or query_QD.shape[1] != dim:
        raise BadInput(f"queries of shape {query_QD.shape} do not fit an index of width {dim}")
    return np.ascontiguousarray(query_QD, np.float32)


def _search_blocks(
    query_QD: Vectors, k: int, blocks: Callable[[], Iterable[tuple[int, Vectors]]], threads: int
) -> tuple[Rows, Vectors]:
    passes = [query_QD[start : start + QUERIES_PER_PASS] for start in range(0, len(query_QD), QUERIES_PER_PASS)]
    if len(passes) < 2 or threads < 2:
        results = [_search_pass(part_QD, k, blocks()) for part_QD in passes]
    else:
        with ThreadPoolExecutor(min(threads, len(passes))) as pool:
            try:
                results = list(pool.map(lambda part_QD: _search_pass(part_QD, k, blocks()), passes))
            finally:  # an interrupted search does not wait for passes that have not started
                pool.shutdown(wait=False, cancel_futures=True)
    if not results:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    return np.concatenate([rows for rows, _ in results]), np.concatenate([scores for _, scores in results])


def _search_pass(query_QD: Vectors, k: int, blocks: Iterable[tuple[int, Vectors]]) -> tuple[Rows, Vectors]:
    best_rows_QK = np.empty((len(query_QD), 0), np.int64)
    best_scores_QK = np.empty((len(query_QD), 0), np.float32)
    for start, block_BD in blocks:
        scores_QB = query_QD @ block_BD.T
        columns_QK = top_columns(scores_QB, k)
        best_rows_QK = np.concatenate([best_rows_QK, columns_QK + start], axis=1)
        best_scores_QK = np.concatenate([best_scores_QK, np.take_along_axis(scores_QB, columns_QK, 1)], axis=1)
        if best_rows_QK.shape[1] > k:
            keep_QK = top_columns(best_scores_QK, k)
            best_rows_QK = np.take_along_axis(best_rows_QK, keep_QK, 1)
            best_scores_QK = np.take_along_axis(best_scores_QK, keep_QK, 1)
    order_QK = np.lexsort((best_rows_QK, -best_scores_QK))
    return np.take_along_axis(best_rows_QK, order_QK, 1), np.take_along_axis(best_scores_QK, order_QK, 1)


def top_columns(scores_QB: NDArray[np.floating[Any]], k: int) -> Rows:
    """Return the columns of the min(k, B) largest scores of each row, unordered.

    Columns are first compared in groups of G: the k largest scores are in the k groups with the largest maxima.
    """
    n_queries, n_columns = scores_QB.shape
    if k >= n_columns:
        return np.tile(np.arange(n_columns), (n_queries, 1))
    group = math.isqrt(n_columns // k)  # minimises the comparisons of both steps
    if group < MIN_GROUP:
        return np.argpartition(scores_QB, -k, axis=1)[:, -k:]
    width = n_columns // group
    largest_QW = scores_QB[:, : width * group].reshape(n_queries, group, width).max(axis=1)
    first_QK = np.argpartition(largest_QW, -k, axis=1)[:, -k:]
    column_QC = (first_QK[:, None, :] + width * np.arange(group)[:, None]).reshape(n_queries, -1)
    rest_QR = np.broadcast_to(np.arange(width * group, n_columns), (n_queries, n_columns - width * group))
    column_QC = np.concatenate([column_QC, rest_QR], axis=1)
    best_QK = np.argpartition(np.take_along_axis(scores_QB, column_QC, 1), -k, axis=1)[:, -k:]
    return np.take_along_axis(column_QC, best_QK, 1)
