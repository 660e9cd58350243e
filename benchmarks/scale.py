"""Measure bytes per label, build time, recall and latency by the number of labels, as export builds an index.

    python -m benchmarks.scale STORE DATASET --work FOLDER [--sizes 10000 100000 300000] [--threads 1]

Label vectors of a bundle are extended with jittered copies. Each size gets vectors in int8, and an index whose width
and graph settings export's own code chooses. Queries are the dataset's test queries at the bundle's default weight.
The time of a search is that of one query on one thread: index and comparison of whole vectors, without the encoder. A
size that was measured is read from FOLDER.

Suffixes: L labels, Q queries, D vector width, W width of the projection.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.measuring.label_scale import extend_labels
from benchmarks.measuring.running import count, run_command
from export.index.choice import choose_width
from export.index.graph import choose_graph, sample_nodes
from export.index.int8_vectors import write_int8
from export.index.pca import first_directions, fit_directions, write_projected
from export.index.recall import EF_LADDER, IndexProbe, recall_at, smallest_ef
from retrieval import open_bundle
from retrieval.bundle.manifest import INDEX, VECTOR_SCALES, VECTORS
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.distinct_vectors import nodes_of
from retrieval.search.indexes import ExactIndex, HnswIndex, Vectors
from retrieval.search.pca_index import PcaIndex, rescore
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.progress import no_progress
from training.data.dataset import Dataset

K = 10
RECALL = 0.99
QUERIES = 300
WHOLE, PROJECTED = "float32.npy", "projected.npy"


@dataclass(frozen=True)
class Scale:
    """Cost of one number of labels: bytes per label on disk, seconds, milliseconds per query."""

    labels: int
    width: int
    m: int
    ef_construction: int
    ef: int
    recall_at_10: float
    vector_bytes: float
    index_bytes: float
    choice_seconds: float
    build_seconds: float
    milliseconds: float
    peak_gigabytes: float


def main() -> int:
    """Measure and print a table. Prints an error and returns 1 if a bundle cannot be opened."""
    parser = argparse.ArgumentParser(description="Cost of an index by the number of labels.")
    parser.add_argument("store", type=Path, help="a store or a bundle's folder, whose label vectors are extended")
    parser.add_argument("dataset", type=Path, help="the prepared dataset with the test queries")
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors, indexes and results")
    parser.add_argument("--sizes", type=count, nargs="+", default=[10_000, 100_000, 300_000], help="numbers of labels")
    parser.add_argument("--threads", type=count, default=1, help="threads of a build")
    return run_command(measure, parser.parse_args())


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Measure every size that is not in the work folder, and write a table; return its path."""
    options.work.mkdir(parents=True, exist_ok=True)
    texts = Dataset.open(options.dataset).scored("test").texts[:QUERIES]
    with open_bundle(options.store, threads=options.threads) as retriever:
        model = retriever.manifest.model
        query_QD = np.concatenate(retriever.encode(texts), axis=1)
        query_QD *= model.query_scale(retriever.manifest.classifier_weight)
        sizes, real_LD = sorted(options.sizes), retriever.vectors_LD[:]
    path = options.work / f"labels-{sizes[-1]}.npy"
    all_LD = extend_labels(real_LD, model.dual_dim, sizes[-1], path, console.print)
    scales = []
    for size in sizes:
        result = options.work / f"{size}.json"
        if not result.is_file():
            console.print(f"{size:,} labels")
            folder = options.work / str(size)
            folder.mkdir(exist_ok=True)
            scale = measure_size(all_LD[:size], model.dual_dim, query_QD, folder, options.threads)
            result.write_text(json.dumps(asdict(scale)), encoding="utf-8")
        scales.append(Scale(**json.loads(result.read_text(encoding="utf-8"))))
    table: Path = options.work / "scale.md"
    table.write_text("\n".join(rows_of(scales)) + "\n", encoding="utf-8")
    console.print(table.read_text(encoding="utf-8"), markup=False)
    return table


def measure_size(whole_LD: Vectors, dual_dim: int, query_QD: Vectors, folder: Path, threads: int) -> Scale:
    """Build the index of some labels as export does, and measure it."""
    np.save(folder / WHOLE, whole_LD)
    vectors_LD = write_int8(folder / WHOLE, folder, dual_dim)
    (folder / WHOLE).unlink()
    nodes, start = nodes_of(vectors_LD), time.perf_counter()
    directions_DD, _ = fit_directions(vectors_LD, dual_dim)
    row_N = nodes.representatives
    width = choose_width(vectors_LD, row_N, directions_DD, query_QD, [], dual_dim, no_progress)
    projection_DW = first_directions(directions_DD, width)
    sample_SW = vectors_LD[row_N[sample_nodes(nodes.size)]] @ projection_DW
    choice = choose_graph(sample_SW, nodes.size, query_QD @ projection_DW, None, None, threads, no_progress)
    chosen = time.perf_counter()
    projected_NW = write_projected(vectors_LD, row_N, projection_DW, folder / PROJECTED)
    HnswIndex.build(projected_NW, **choice._asdict(), threads=threads).save(folder / INDEX)
    built = time.perf_counter()
    (folder / PROJECTED).unlink()
    graph = HnswIndex.load(folder / INDEX, width, nodes.size, ef=1, pool=ThreadPool(1))
    probe = IndexProbe(PcaIndex(graph, projection_DW), vectors_LD, dual_dim, nodes)
    ef, recall = _smallest_ef(probe, vectors_LD, query_QD, dual_dim)
    vector_bytes = sum((folder / name).stat().st_size for name in (VECTORS, VECTOR_SCALES))
    return Scale(
        labels=len(vectors_LD), width=width, m=choice.m, ef_construction=choice.ef_construction, ef=ef,
        recall_at_10=recall, vector_bytes=vector_bytes / len(vectors_LD),
        index_bytes=(folder / INDEX).stat().st_size / len(vectors_LD), choice_seconds=chosen - start,
        build_seconds=built - chosen,
        milliseconds=_milliseconds(lambda query_1D: probe.search(query_1D, K, ef), query_QD),
        peak_gigabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )  # fmt: skip


def rows_of(scales: list[Scale]) -> list[str]:
    """Return the table as lines of Markdown."""
    lines = [
        "| labels | W | m | ef | recall@10 | bytes per label: vectors + index | choice | build | one query |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return lines + [
        f"| {one.labels:,} | {one.width} | {one.m} | {one.ef} | {one.recall_at_10:.4f} | {one.vector_bytes:.0f} + "
        f"{one.index_bytes:.0f} = {one.vector_bytes + one.index_bytes:.0f} | {one.choice_seconds:.0f} s | "
        f"{one.build_seconds:.0f} s | {one.milliseconds:.2f} ms |"
        for one in scales
    ]


def _smallest_ef(probe: IndexProbe, vectors_LD: LabelVectors, query_QD: Vectors, dual_dim: int) -> tuple[int, float]:
    """Return the smallest ef_search that reaches RECALL, and its recall@10 against exact search."""
    exact = ExactIndex(vectors_LD)
    best_QK = rescore(query_QD, exact.search(query_QD, K)[0], vectors_LD, dual_dim, K)[1]

    def recall(ef: int) -> float:
        return recall_at(K, probe.search(query_QD, K, ef)[1], best_QK)

    ef = smallest_ef(EF_LADDER, len(vectors_LD), lambda tried: recall(tried) >= RECALL)
    return ef, recall(ef)


def _milliseconds(search: Callable[[Vectors], object], query_QD: Vectors) -> float:
    seconds = []
    for row in range(len(query_QD)):
        query_1D, start = np.ascontiguousarray(query_QD[row : row + 1]), time.perf_counter()
        search(query_1D)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
