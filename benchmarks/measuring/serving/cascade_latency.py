"""Measure a search of a cascade index, with shortlists and exact, on a synthetic tree.

    python -m benchmarks.measuring.serving.cascade_latency [--labels 150000] [--shortlist 64 128]

One thread, one query at a time, ten results. Rows and queries are random, and clusters are balanced. Writes no files.
"""

import argparse
import time
from itertools import pairwise

import numpy as np

from benchmarks.measuring.running import count
from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.indexes import Vectors

CLUSTERS = (256, 4096)
K, WIDTH, SEARCHES, EXACT_SEARCHES = 10, 385, 1000, 50


def main() -> None:
    """Measure and print percentiles in milliseconds."""
    parser = argparse.ArgumentParser(description="Latency of a cascade index.")
    parser.add_argument("--labels", type=count, default=150_000)
    parser.add_argument("--shortlist", type=count, nargs=2, default=(64, 128), help="nodes kept at both levels")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    index = make_index(rng, options.labels, options.shortlist)
    query_QD = rng.standard_normal((SEARCHES, index.dim)).astype(np.float32)
    for title, exact, searches in (("shortlists", False, SEARCHES), ("exact", True, EXACT_SEARCHES)):
        spent = [1000 * seconds(index, query_QD[[query]], exact) for query in range(searches)]
        p50, p99 = np.percentile(spent, (50, 99))
        print(f"{title}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def make_index(rng: np.random.Generator, labels: int, shortlist: tuple[int, int]) -> CascadeIndex:
    """Return an index of random rows, whose labels are in no particular order."""
    sizes = (*CLUSTERS, labels)
    rows: list[Vectors] = [rng.standard_normal((size, WIDTH), np.float32) / WIDTH**0.5 for size in sizes]
    parents = [rng.permutation(below) % above for above, below in pairwise(sizes)]
    return CascadeIndex.build(rows, parents, shortlist)


def seconds(index: CascadeIndex, query_QD: Vectors, exact: bool) -> float:
    """Return the seconds of one search."""
    started = time.perf_counter()
    index.rank(query_QD, K, exact=exact)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
