"""Compare HNSW with exact search by the number of labels: real label vectors, extended with jittered copies.

A copy is a label moved by the distance of a random label to its nearest neighbour, in a direction drawn from the
covariance of real labels; each half then gets its old length. The sets are nested: smaller sets are the first rows of
the largest, so one growing index is built and saved at each size. Files stay in a folder, so a build can be resumed.

Suffixes: L labels, B labels of a block, N sampled labels, D vector width, Q queries, K results.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from export.index.recall import recall_at
from retrieval.bundle.index_file import check_index_file
from retrieval.search.indexes import LABELS_PER_INSERTION, ExactIndex, HnswIndex, Rows, Vectors
from retrieval.search.thread_pool import ThreadPool

K = 10
M, EF_CONSTRUCTION = 32, 200  # of the graph
RECALL = 0.99  # at which latencies are compared
MAX_EF = 4_096
SAMPLED = 2_000  # labels whose nearest neighbours are measured
LABELS_PER_BLOCK = 16_384
QUERIES_PER_TURN = 100  # before the next index, so that each index has its own vectors in the CPU cache
EXACT_QUERIES = 20
WARMUP_QUERIES = 20
LABELS_PER_SAVE = 50_000  # between the sizes, so that an interrupted build loses little

Log = Callable[[str], object]


@dataclass(frozen=True)
class Scale:
    """Cost of one number of labels: seconds, milliseconds per query on one thread, bytes per label."""

    labels: int
    ef: int
    recall_at_10: float
    milliseconds: float
    exact_milliseconds: float
    build_seconds: float
    build_processor_seconds: float
    file_bytes: float
    memory_bytes: float
    check_seconds: float
    open_seconds: float


def measure(
    vectors_LD: Vectors, dual_dim: int, query_QD: Vectors, sizes: list[int], folder: Path, threads: int, log: Log
) -> list[Scale]:
    """Build the missing indexes, then measure every size; `query_QD` include the classifier weight."""
    folder.mkdir(parents=True, exist_ok=True)
    all_LD = extend_labels(vectors_LD, dual_dim, max(sizes), folder / f"vectors-{max(sizes)}.npy", log)
    _grow(all_LD, sizes, folder, threads, log)
    built = [_cost(folder, size) for size in sizes]
    opened = [_load_index(folder / f"index-{size}", all_LD.shape[1], size) for size in sizes]
    chosen, exact = [], []
    for size, (index, _) in zip(sizes, opened, strict=True):
        log(f"{size:,} labels: exact search, and ef for recall@10 of {RECALL}")
        best_QK = _scores(query_QD, ExactIndex(all_LD[:size], threads).search(query_QD, K)[0], all_LD)
        exact.append(_exact_milliseconds(ExactIndex(all_LD[:size], 1), query_QD))
        chosen.append(smallest_ef(index, query_QD, best_QK, all_LD))
    milliseconds = latencies([index for index, _ in opened], [ef for ef, _ in chosen], query_QD)
    return [
        Scale(labels=size, ef=ef, recall_at_10=recall, milliseconds=one, exact_milliseconds=other, **cost, **opening)
        for size, (ef, recall), one, other, cost, (_, opening) in zip(
            sizes, chosen, milliseconds, exact, built, opened, strict=True
        )
    ]


def extend_labels(vectors_LD: Vectors, dual_dim: int, size: int, path: Path, log: Log) -> Vectors:
    """Return `size` vectors, memory-mapped: the real ones in random order, then copies."""
    if not path.is_file():
        log(f"{size:,} label vectors from {len(vectors_LD):,} real ones")
        draw, real = np.random.default_rng(0), min(size, len(vectors_LD))
        moves = Jitter.of(vectors_LD, draw)
        order_L = draw.permutation(len(vectors_LD))[:real]
        temporary = path.with_suffix(".half")
        wide_LD = np.lib.format.open_memmap(temporary, "w+", np.float32, (size, vectors_LD.shape[1]))
        for start in range(0, size, LABELS_PER_BLOCK):
            place_B = np.arange(start, min(start + LABELS_PER_BLOCK, size))
            block_BD = np.asarray(vectors_LD[order_L[place_B % real]])
            copies_B = place_B >= real
            block_BD[copies_B] = moves.copies(block_BD[copies_B], dual_dim, draw)
            wide_LD[place_B] = block_BD
        wide_LD.flush()
        temporary.replace(path)
    vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


@dataclass(frozen=True)
class Jitter:
    """Distances of labels to their nearest neighbour [N], and a square root of the labels' covariance [D, D]."""

    distance_N: NDArray[np.float32]
    root_DD: NDArray[np.float32]

    @classmethod
    def of(cls, vectors_LD: Vectors, draw: np.random.Generator) -> "Jitter":
        """Measure a sample of labels; duplicates, at distance 0, are ignored."""
        row_N = draw.choice(len(vectors_LD), min(SAMPLED, len(vectors_LD)), replace=False)
        sample_ND = np.asarray(vectors_LD[row_N], np.float64)
        nearest_N = np.full(len(row_N), np.inf)
        for start in range(0, len(vectors_LD), LABELS_PER_BLOCK):
            block_BD = np.asarray(vectors_LD[start : start + LABELS_PER_BLOCK])
            squared_NB = (sample_ND**2).sum(1)[:, None] + (block_BD**2).sum(1) - 2 * sample_ND @ block_BD.T
            squared_NB[squared_NB < 1e-6] = np.inf  # the label itself, or a duplicate
            nearest_N = np.minimum(nearest_N, squared_NB.min(axis=1))
        values_D, vectors_DD = np.linalg.eigh(np.cov(sample_ND.T))
        root_DD = vectors_DD * np.sqrt(np.maximum(values_D, 0))
        return cls(np.sqrt(nearest_N).astype(np.float32), root_DD.T.astype(np.float32))

    def copies(self, label_BD: Vectors, dual_dim: int, draw: np.random.Generator) -> Vectors:
        """Return one jittered copy per label; a zero half, such as that of an untrained label, stays zero."""
        move_BD = draw.standard_normal(label_BD.shape, np.float32) @ self.root_DD
        length_B1 = np.linalg.norm(move_BD, axis=1, keepdims=True)
        moved_BD = label_BD + move_BD / length_B1 * draw.choice(self.distance_N, len(label_BD))[:, None]
        for half in (slice(None, dual_dim), slice(dual_dim, None)):
            before_B1 = np.linalg.norm(label_BD[:, half], axis=1, keepdims=True)
            moved_BD[:, half] *= before_B1 / np.linalg.norm(moved_BD[:, half], axis=1, keepdims=True)
        copies_BD: Vectors = moved_BD.astype(np.float32)
        return copies_BD


def smallest_ef(
    index: HnswIndex, query_QD: Vectors, best_QK: NDArray[np.float64], vectors_LD: Vectors
) -> tuple[int, float]:
    """Find the smallest ef with recall@10 of at least RECALL by bisection; return it and its recall, or MAX_EF."""

    def recall(ef: int) -> float:
        return recall_at(K, _scores(query_QD, index.search(query_QD, ef)[0][:, :K], vectors_LD), best_QK)

    low, high = K, min(MAX_EF, index.size)
    recalls = {high: recall(high)}
    while low < high and recalls[high] >= RECALL:
        middle = int((low * high) ** 0.5)
        recalls[middle] = recall(middle)
        low, high = (low, middle) if recalls[middle] >= RECALL else (middle + 1, high)
    return high, recalls[high]


def latencies(indexes: list[HnswIndex], efs: list[int], query_QD: Vectors) -> list[float]:
    """Return the median milliseconds of a single query per index, the indexes in alternation."""
    seconds_by_index: list[list[float]] = [[] for _ in indexes]
    for start in range(0, len(query_QD), QUERIES_PER_TURN):
        for index, ef, seconds in zip(indexes, efs, seconds_by_index, strict=True):
            seconds += _seconds(partial(index.search, k=ef), query_QD[start : start + QUERIES_PER_TURN])
    return [1000 * statistics.median(seconds) for seconds in seconds_by_index]


def _exact_milliseconds(index: ExactIndex, query_QD: Vectors) -> float:
    return 1000 * statistics.median(_seconds(partial(index.search, k=K), query_QD[:EXACT_QUERIES]))


def _seconds(search: Callable[[Vectors], object], query_QD: Vectors) -> list[float]:
    """Time single queries; the first ones are dropped, because the cache has another set's vectors."""
    seconds = []
    for row in range(len(query_QD)):
        started = time.perf_counter()
        search(query_QD[row : row + 1])
        seconds.append(time.perf_counter() - started)
    return seconds[min(WARMUP_QUERIES, len(seconds) // 2) :]


def _grow(vectors_LD: Vectors, sizes: list[int], folder: Path, threads: int, log: Log) -> None:
    """Build one growing index with the settings of `diptych export`; save it at each size and at points between.

    The total build cost is saved with each file.
    """
    before, between = 0, range(LABELS_PER_SAVE, max(sizes), LABELS_PER_SAVE)
    reached = max((size for size in (*sizes, *between) if (folder / f"index-{size}").is_file()), default=0)
    for size in sorted({*sizes, *(size for size in between if size >= reached)}):
        path = folder / f"index-{size}"
        if not path.with_suffix(".json").is_file():
            log(f"{size:,} labels: building the index")
            cost = _cost(folder, before) if before else {"build_seconds": 0.0, "build_processor_seconds": 0.0}
            index = _open_for_insertion(size, vectors_LD.shape[1], folder / f"index-{before}" if before else None)
            wall, processor = time.perf_counter(), time.process_time()
            for start in range(before, size, LABELS_PER_INSERTION):
                stop = min(start + LABELS_PER_INSERTION, size)
                index.add_items(np.asarray(vectors_LD[start:stop]), np.arange(start, stop), num_threads=threads)
            cost["build_seconds"] += time.perf_counter() - wall
            cost["build_processor_seconds"] += time.process_time() - processor
            HnswIndex(index, K, ThreadPool(threads)).save(path)
            path.with_suffix(".json").write_text(json.dumps(cost), encoding="utf-8")
        if before and before not in sizes:
            (folder / f"index-{before}").unlink(missing_ok=True)
        before = size


def _open_for_insertion(size: int, dim: int, path: Path | None) -> Any:
    """Load an hnswlib index from a file, or create an empty one, with room for `size` labels."""
    index = hnswlib.Index(space="ip", dim=dim)
    if path is None:
        index.init_index(size, M=M, ef_construction=EF_CONSTRUCTION)
    else:
        index.load_index(str(path), max_elements=size)
    return index


def _cost(folder: Path, size: int) -> dict[str, Any]:
    cost: dict[str, Any] = json.loads((folder / f"index-{size}.json").read_text(encoding="utf-8"))
    return cost


def _load_index(path: Path, dim: int, size: int) -> tuple[HnswIndex, dict[str, float]]:
    """Load an index from a file in the page cache; return it and the cost."""
    check_index_file(path, dim, size)  # reads it into the page cache
    started = time.perf_counter()
    check_index_file(path, dim, size)
    checked, before = time.perf_counter(), _resident_bytes()
    index = HnswIndex.load(path, dim, size, ef=1, pool=ThreadPool(1))
    return index, {
        "check_seconds": checked - started,
        "open_seconds": time.perf_counter() - checked,
        "memory_bytes": (_resident_bytes() - before) / size,
        "file_bytes": path.stat().st_size / size,
    }


def _resident_bytes() -> int:
    """Return the anonymous memory of this process, without pages of mapped files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def _scores(query_QD: Vectors, rows_QK: Rows, vectors_LD: Vectors) -> NDArray[np.float64]:
    """Compute the scores of rows, best first, summed in the same order for every index."""
    scores_QK = np.einsum("qd,qkd->qk", query_QD, vectors_LD[rows_QK], dtype=np.float64)
    return -np.sort(-scores_QK, axis=1)
