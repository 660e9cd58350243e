"""What a filter costs and what it keeps: recall and time by the share of labels it allows.

    python benchmarks/filtered_search.py STORE DATASET [--queries 300] [--threads 1]

STORE is a store or a bundle, DATASET the prepared dataset whose test queries are asked. Filters are drawn: some allow
labels anywhere, some those of one region, which most queries are far from. Each is answered as the planner chooses and
in both ways; recall@10 is held against comparing with every allowed label. Nothing is written.
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
from retrieval.search.candidates import Candidates
from retrieval.search.indexes import ExactIndex, Rows, Vectors
from training.data.dataset import Dataset

SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
ROUNDS, SECONDS = 50, 3.0  # at most, for one figure
WANTED = 26  # for ten hits: equal scores around the tenth must all be seen
WAYS: dict[str, Callable[..., bool]] = {
    "planned": Candidates.compares_each,
    "each": lambda *_: True,
    "index": lambda *_: False,
}


def main() -> int:
    """Measure and print; an error is one sentence and code 1."""
    parser = argparse.ArgumentParser(description="What a filter costs and what it keeps.")
    parser.add_argument("store", type=Path, help="a store (its active bundle) or one bundle's folder")
    parser.add_argument("dataset", type=Path, help="a prepared dataset, whose test queries are asked")
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
    """A row a filter: recall@10 and milliseconds a query, alone and 64 together, by way."""
    manifest, weight = retriever.manifest, retriever.manifest.classifier_weight
    query_QD = np.concatenate(retriever.encode(texts), axis=1) * manifest.model.query_scale(weight)
    exact, candidates = ExactIndex(retriever.vectors_LD, threads), retriever.candidates
    effort = manifest.index.ef_search_at(weight)
    table = Table(
        title=f"{retriever.name}, {manifest.labels.count:,} labels, weight {weight:g}, effort {effort}", box=None
    )
    for column in ("allowed", "where", "recall@10", "ms alone", "each", "index", "ms of 64", "each", "index"):
        table.add_column(column, justify="right")
    without = _times(candidates, query_QD, effort, None)
    table.add_row("all", "", "", f"{without[0]:.2f}", "", "", f"{without[1]:.2f}", "", "")
    for share in SHARES:
        for where, allowed in _filters(retriever.vectors_LD, share).items():
            rows_QC = candidates.find(query_QD, WANTED, effort, allowed)
            best_QK = exact.search(query_QD, 10, allowed.rows_R)[0]
            alone, together = zip(*(_forced(way, candidates, query_QD, effort, allowed) for way in WAYS), strict=True)
            cells = [f"{milliseconds:.2f}" for milliseconds in (*alone, *together)]
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
    """Share of the best that stand among the candidates, from which exact scores pick."""
    return float(np.mean([np.isin(best_K, rows_C).mean() for rows_C, best_K in zip(rows_QC, best_QK, strict=True)]))


def _forced(
    way: str, candidates: Candidates, query_QD: Vectors, effort: int | None, allowed: Allowed
) -> tuple[float, float]:
    planned = Candidates.compares_each
    Candidates.compares_each = staticmethod(WAYS[way])  # type: ignore[method-assign, assignment]
    try:
        return _times(candidates, query_QD, effort, allowed)
    finally:
        Candidates.compares_each = staticmethod(planned)  # type: ignore[method-assign]


def _times(
    candidates: Candidates, query_QD: Vectors, effort: int | None, allowed: Allowed | None
) -> tuple[float, float]:
    """Median milliseconds a query, alone and 64 together."""
    medians = []
    for size in (1, 64):
        seconds: list[float] = []
        for start in range(0, min(len(query_QD), ROUNDS * size), size):
            if sum(seconds) * size > SECONDS:
                break
            started = time.perf_counter()
            candidates.find(query_QD[start : start + size], WANTED, effort, allowed)
            seconds.append((time.perf_counter() - started) / len(query_QD[start : start + size]))
        medians.append(1000 * statistics.median(seconds))
    return medians[0], medians[1]


if __name__ == "__main__":
    sys.exit(main())
