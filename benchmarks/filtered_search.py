"""Measure recall and latency of filtered search, by the share of labels that the filter allows.

    python benchmarks/filtered_search.py STORE DATASET [--queries 300] [--threads 1]

STORE is a store or a bundle, DATASET the prepared dataset whose test queries are searched. Filters are random: some
allow labels anywhere, others labels of one region, which is far from most queries. Each filter is measured with the
planner's choice and with both plans. Recall@10 is relative to a comparison with every allowed label. Writes no files.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measuring.running import count
from retrieval import Retriever, open_bundle
from retrieval.errors import DiptychError
from retrieval.search.attributes import Allowed
from retrieval.search.candidates import Candidates, scan_is_cheaper
from retrieval.search.indexes import ExactIndex, Rows, Vectors
from training.data.dataset import Dataset

SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
MAX_ROUNDS, MAX_SECONDS = 50, 3.0  # per measured value
CANDIDATES = 26  # for ten hits: labels with equal scores around the tenth must all be candidates
PLANS: dict[str, Callable[[int, int, int], bool]] = {
    "planned": scan_is_cheaper,
    "each": lambda *_: True,
    "index": lambda *_: False,
}


def main() -> int:
    """Measure and print a table. Prints an error and returns 1 if the store or the dataset cannot be read."""
    parser = argparse.ArgumentParser(description="Recall and latency of filtered search.")
    parser.add_argument("store", type=Path, help="a store (its active bundle) or one bundle's folder")
    parser.add_argument("dataset", type=Path, help="a prepared dataset, whose test queries are searched")
    parser.add_argument("--queries", type=count, default=300)
    parser.add_argument("--threads", type=count, default=1)
    options = parser.parse_args()
    try:
        texts = Dataset.open(options.dataset).scored("test").texts[: options.queries]
        with open_bundle(options.store, threads=options.threads) as retriever:
            Console(width=140).print(measure(retriever, texts, options.threads))
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(retriever: Retriever, texts: list[str], threads: int) -> Table:
    """Return a row per filter: recall@10, and milliseconds per query by plan, for one query and in batches of 64."""
    manifest, weight = retriever.manifest, retriever.manifest.classifier_weight
    query_QD = np.concatenate(retriever.encode(texts), axis=1) * manifest.model.query_scale(weight)
    exact, candidates = ExactIndex(retriever.vectors_LD, threads), retriever.candidates
    planned = [Candidates(candidates.index, exact, candidates.nodes(), prefer_scan) for prefer_scan in PLANS.values()]
    ef_search = manifest.index.ef_search_at(weight)
    table = Table(
        title=f"{retriever.name}, {manifest.labels.count:,} labels, weight {weight:g}, ef_search {ef_search}", box=None
    )
    for column in (
        "allowed",
        "where",
        "recall@10",
        "ms, batch of 1",
        "each",
        "index",
        "ms, batch of 64",
        "each",
        "index",
    ):
        table.add_column(column, justify="right")
    unfiltered = _times(candidates, query_QD, ef_search, None)
    table.add_row("all", "", "", f"{unfiltered[0]:.2f}", "", "", f"{unfiltered[1]:.2f}", "", "")
    for share in SHARES:
        for where, allowed in _filters(retriever.vectors_LD[:], share).items():
            rows_QC = candidates.find(query_QD, CANDIDATES, ef_search, allowed)
            best_QK = exact.search(query_QD, 10, allowed.rows_R)[0]
            single, batched = zip(*(_times(one, query_QD, ef_search, allowed) for one in planned), strict=True)
            cells = [f"{milliseconds:.2f}" for milliseconds in (*single, *batched)]
            table.add_row(f"{share:.2%}", where, f"{_recall(rows_QC, best_QK):.4f}", *cells)
    return table


def _filters(vectors_LD: Vectors, share: float) -> dict[str, Allowed]:
    draw, size = np.random.default_rng(0), len(vectors_LD)
    anywhere_L = np.zeros(size, np.bool_)
    anywhere_L[draw.choice(size, max(1, round(share * size)), replace=False)] = True
    nearness_L = np.asarray(vectors_LD @ vectors_LD[draw.integers(size)])
    region_L = nearness_L >= np.partition(nearness_L, -max(1, round(share * size)))[-max(1, round(share * size))]
    return {"anywhere": Allowed(anywhere_L), "one region": Allowed(region_L)}


def _recall(rows_QC: Rows, best_QK: Rows) -> float:
    """Return the share of the best labels that are among the candidates."""
    return float(np.mean([np.isin(best_K, rows_C).mean() for rows_C, best_K in zip(rows_QC, best_QK, strict=True)]))


def _times(
    candidates: Candidates, query_QD: Vectors, ef_search: int | None, allowed: Allowed | None
) -> tuple[float, float]:
    """Return the median milliseconds per query, for one query and in batches of 64."""
    medians = []
    for size in (1, 64):
        seconds: list[float] = []
        for start in range(0, min(len(query_QD), MAX_ROUNDS * size), size):
            if sum(seconds) * size > MAX_SECONDS:
                break
            started = time.perf_counter()
            candidates.find(query_QD[start : start + size], CANDIDATES, ef_search, allowed)
            seconds.append((time.perf_counter() - started) / len(query_QD[start : start + size]))
        medians.append(1000 * statistics.median(seconds))
    return medians[0], medians[1]


if __name__ == "__main__":
    sys.exit(main())
