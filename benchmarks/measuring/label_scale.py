"""HNSW against exact search by the number of labels: real label vectors, extended with jittered copies.

A copy is its label moved by as much as labels lie from their nearest neighbours, along what real labels differ in, each
half then given its old length. The sets are nested: the smaller ones are the first rows of the largest, and so one
index is built and kept at each size. What is built stays in a folder, so that the same command goes on.

Suffixes: L labels, B a block of them, N sampled ones, D vector width, Q queries, K results.
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

from export.build import ExportSettings
from export.recall import recall_at
from retrieval.bundle.index_file import check_index_file
from retrieval.search.indexes import LABELS_PER_INSERTION, ExactIndex, HnswIndex, Rows, Vectors
from retrieval.search.thread_pool import ThreadPool

K = 10
RECALL = 0.99  # that latencies are compared at
MOST_EF = 4_096
SAMPLED = 2_000  # labels whose nearest neighbour says how far copies are moved
LABELS_PER_BLOCK = 16_384
QUERIES_IN_TURN = 100  # a set's vectors are in the cache as they would be, not as another set leaves it
EXACT_QUERIES = 20
WARM = 20
LABELS_BETWEEN = 50_000  # a build that is stopped loses no more

Told = Callable[[str], object]


@dataclass(frozen=True)
class Scale:
    """What one number of labels needs; seconds, milliseconds of one query alone on one thread, bytes of one label."""

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
    vectors_LD: Vectors, dual_dim: int, query_QD: Vectors, sizes: list[int], folder: Path, threads: int, told: Told
) -> list[Scale]:
    """Build what is not built yet, then measure every size in turn; `query_QD` are weighted as the labels are."""
    folder.mkdir(parents=True, exist_ok=True)
    all_LD = extended(vectors_LD, dual_dim, max(sizes), folder / f"vectors-{max(sizes)}.npy", told)
    _grow(all_LD, sizes, folder, threads, told)
    built = [_cost(folder, size) for size in sizes]
    opened = [_opened(folder / f"index-{size}", all_LD.shape[1], size) for size in sizes]
    chosen, exact = [], []
    for size, (index, _) in zip(sizes, opened, strict=True):
        told(f"{size:,} labels: exact answers, and ef for recall@10 of {RECALL}")
        best_QK = _scores(query_QD, ExactIndex(all_LD[:size], threads).search(query_QD, K)[0], all_LD)
        exact.append(_exact_milliseconds(ExactIndex(all_LD[:size], 1), query_QD))
        chosen.append(least_ef(index, query_QD, best_QK, all_LD))
    milliseconds = latencies([index for index, _ in opened], [ef for ef, _ in chosen], query_QD)
    return [
        Scale(labels=size, ef=ef, recall_at_10=recall, milliseconds=one, exact_milliseconds=other, **cost, **opening)
        for size, (ef, recall), one, other, cost, (_, opening) in zip(
            sizes, chosen, milliseconds, exact, built, opened, strict=True
        )
    ]


def extended(vectors_LD: Vectors, dual_dim: int, size: int, path: Path, told: Told) -> Vectors:
    """`size` vectors, memory-mapped: the real ones in a random order, and as many copies as are missing."""
    if not path.is_file():
        told(f"{size:,} label vectors from {len(vectors_LD):,} real ones")
        draw, real = np.random.default_rng(0), min(size, len(vectors_LD))
        moves = Moves.of(vectors_LD, draw)
        order_L = draw.permutation(len(vectors_LD))[:real]
        aside = path.with_suffix(".half")
        wide_LD = np.lib.format.open_memmap(aside, "w+", np.float32, (size, vectors_LD.shape[1]))
        for start in range(0, size, LABELS_PER_BLOCK):
            place_B = np.arange(start, min(start + LABELS_PER_BLOCK, size))
            block_BD = np.asarray(vectors_LD[order_L[place_B % real]])
            copies_B = place_B >= real
            block_BD[copies_B] = moves.copies(block_BD[copies_B], dual_dim, draw)
            wide_LD[place_B] = block_BD
        wide_LD.flush()
        aside.replace(path)
    found_LD: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return found_LD


@dataclass(frozen=True)
class Moves:
    """How far labels lie from their nearest neighbour, and along what they differ: a root of their covariance."""

    distance_N: NDArray[np.float32]
    root_DD: NDArray[np.float32]

    @classmethod
    def of(cls, vectors_LD: Vectors, draw: np.random.Generator) -> "Moves":
        """Measured on a sample of labels; those that have a twin, at distance 0, say nothing."""
        row_N = draw.choice(len(vectors_LD), min(SAMPLED, len(vectors_LD)), replace=False)
        sample_ND = np.asarray(vectors_LD[row_N], np.float64)
        nearest_N = np.full(len(row_N), np.inf)
        for start in range(0, len(vectors_LD), LABELS_PER_BLOCK):
            block_BD = np.asarray(vectors_LD[start : start + LABELS_PER_BLOCK])
            squared_NB = (sample_ND**2).sum(1)[:, None] + (block_BD**2).sum(1) - 2 * sample_ND @ block_BD.T
            squared_NB[squared_NB < 1e-6] = np.inf  # itself, or a twin
            nearest_N = np.minimum(nearest_N, squared_NB.min(axis=1))
        values_D, vectors_DD = np.linalg.eigh(np.cov(sample_ND.T))
        root_DD = vectors_DD * np.sqrt(np.maximum(values_D, 0))
        return cls(np.sqrt(nearest_N).astype(np.float32), root_DD.T.astype(np.float32))

    def copies(self, label_BD: Vectors, dual_dim: int, draw: np.random.Generator) -> Vectors:
        """Each label moved once; a half that is zero stays zero, as that of an untrained label."""
        move_BD = draw.standard_normal(label_BD.shape, np.float32) @ self.root_DD
        length_B1 = np.linalg.norm(move_BD, axis=1, keepdims=True)
        moved_BD = label_BD + move_BD / length_B1 * draw.choice(self.distance_N, len(label_BD))[:, None]
        for half in (slice(None, dual_dim), slice(dual_dim, None)):
            before_B1 = np.linalg.norm(label_BD[:, half], axis=1, keepdims=True)
            moved_BD[:, half] *= before_B1 / np.linalg.norm(moved_BD[:, half], axis=1, keepdims=True)
        copies_BD: Vectors = moved_BD.astype(np.float32)
        return copies_BD


def least_ef(
    index: HnswIndex, query_QD: Vectors, best_QK: NDArray[np.float64], vectors_LD: Vectors
) -> tuple[int, float]:
    """The least ef whose recall@10 is RECALL, by halving, and that recall; MOST_EF where none is enough."""

    def recall(ef: int) -> float:
        return recall_at(K, _scores(query_QD, index.search(query_QD, ef)[0][:, :K], vectors_LD), best_QK)

    low, high = K, min(MOST_EF, index.size)
    recalls = {high: recall(high)}
    while low < high and recalls[high] >= RECALL:
        middle = int((low * high) ** 0.5)
        recalls[middle] = recall(middle)
        low, high = (low, middle) if recalls[middle] >= RECALL else (middle + 1, high)
    return high, recalls[high]


def latencies(indexes: list[HnswIndex], efs: list[int], query_QD: Vectors) -> list[float]:
    """Median milliseconds of one query alone, the indexes in turn."""
    taken: list[list[float]] = [[] for _ in indexes]
    for start in range(0, len(query_QD), QUERIES_IN_TURN):
        for index, ef, seconds in zip(indexes, efs, taken, strict=True):
            seconds += _seconds(partial(index.search, k=ef), query_QD[start : start + QUERIES_IN_TURN])
    return [1000 * statistics.median(seconds) for seconds in taken]


def _exact_milliseconds(index: ExactIndex, query_QD: Vectors) -> float:
    return 1000 * statistics.median(_seconds(partial(index.search, k=K), query_QD[:EXACT_QUERIES]))


def _seconds(search: Callable[[Vectors], object], query_QD: Vectors) -> list[float]:
    """What each query takes alone, those asked first left out: they find another set in the cache."""
    seconds = []
    for place in range(len(query_QD)):
        started = time.perf_counter()
        search(query_QD[place : place + 1])
        seconds.append(time.perf_counter() - started)
    return seconds[min(WARM, len(seconds) // 2) :]


def _grow(vectors_LD: Vectors, sizes: list[int], folder: Path, threads: int, told: Told) -> None:
    """One index that grows, with the settings of `diptych export`, kept at each size and now and then between them.

    What building cost so far stands beside each file.
    """
    before, between = 0, range(LABELS_BETWEEN, max(sizes), LABELS_BETWEEN)
    reached = max((size for size in (*sizes, *between) if (folder / f"index-{size}").is_file()), default=0)
    for size in sorted({*sizes, *(size for size in between if size >= reached)}):
        path = folder / f"index-{size}"
        if not path.with_suffix(".json").is_file():
            told(f"{size:,} labels: building the index")
            cost = _cost(folder, before) if before else {"build_seconds": 0.0, "build_processor_seconds": 0.0}
            index = _room_for(size, vectors_LD.shape[1], folder / f"index-{before}" if before else None)
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


def _room_for(size: int, dim: int, path: Path | None) -> Any:
    """hnswlib's index of a file, or an empty one."""
    index, settings = hnswlib.Index(space="ip", dim=dim), ExportSettings()
    if path is None:
        index.init_index(size, M=settings.m, ef_construction=settings.ef_construction)
    else:
        index.load_index(str(path), max_elements=size)
    return index


def _cost(folder: Path, size: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"index-{size}.json").read_text(encoding="utf-8"))
    return found


def _opened(path: Path, dim: int, size: int) -> tuple[HnswIndex, dict[str, float]]:
    """The index, read from a file that is in the system's cache, and what that took."""
    check_index_file(path, dim, size)  # brings it there
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
    """What this process holds and no file backs: pages of a mapped file come and go."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def _scores(query_QD: Vectors, rows_QK: Rows, vectors_LD: Vectors) -> NDArray[np.float64]:
    """Scores of some rows, best first, summed in one way whoever found them."""
    scores_QK = np.einsum("qd,qkd->qk", query_QD, vectors_LD[rows_QK], dtype=np.float64)
    return -np.sort(-scores_QK, axis=1)
