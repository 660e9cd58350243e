"""Measure how far torch, ONNX with exact search, the HNSW index and HTTP agree on real test queries.

    python benchmarks/agreement.py CHECKPOINT STORE DATASET [--queries 500]

The tests in tests/congruence assert this on a briefly trained model. This program measures it on any checkpoint.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch

from retrieval import Retriever, open_bundle
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.data.token_cache import tokenize_in_memory
from training.evaluation.checkpoint_evaluation import selected_mix
from training.evaluation.encoding import encode_labels, encode_queries

K = 10
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    """Print one line per comparison."""
    parser = argparse.ArgumentParser(description="Agreement of torch, ONNX, index and HTTP.")
    for name in ("checkpoint", "store", "dataset"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    queries = Dataset.open(options.dataset).split("test").texts[: options.queries]
    with open_bundle(options.store) as retriever:
        torch_and_onnx(options.checkpoint, retriever, queries)
        index_and_exact(retriever, queries)
        http_and_library(options.store, retriever, queries)
        latency(retriever, queries)


def torch_and_onnx(checkpoint: Path, retriever: Retriever, queries: list[str]) -> None:
    """Compare the bundle's exact top 10 with the model's: the scores, and the labels by their scores."""
    opened, cpu = load_checkpoint(checkpoint), torch.device("cpu")
    encoded = encode_queries(opened.unified, tokenize_in_memory(queries, opened.tokenizer), cpu)
    label_tokens = tokenize_in_memory(opened.labels["text"].to_pylist(), opened.tokenizer)
    labels = encode_labels(
        opened.unified, label_tokens, opened.positives_L, cpu, opened.cone_fraction, opened.label_frequency_L
    )
    weight = opened.classifier_weight
    scores_QL = (
        selected_mix(opened)
        .combine(encoded.dual @ labels.dual.T, encoded.classifier @ labels.classifier.T, labels.popularity)
        .numpy()
    )
    best_QK = -np.sort(np.partition(-scores_QL, K - 1, axis=1)[:, :K], axis=1)
    ranking = retriever.search_rows(queries, K, exact=True, memory_weight=0.0)
    model_QK = np.take_along_axis(scores_QL, ranking.rows_QK, axis=1)
    print(
        f"torch ↔ ONNX, exact, weight {weight:g}: "
        f"largest score difference {np.abs(ranking.scores_QK - model_QK).max():.1e}; "
        f"largest shortfall from the model's top {K}: {(best_QK - model_QK).max():.1e} ({len(queries)} queries)"
    )


def index_and_exact(retriever: Retriever, queries: list[str]) -> None:
    """Measure recall@10 of the index against exact search, by score, at the default and at other weights."""
    for weight in (None, *WEIGHTS):
        exact = retriever.search_rows(queries, K, weight=weight, exact=True)
        indexed = retriever.search_rows(queries, K, weight=weight)
        recall = (indexed.scores_QK >= exact.scores_QK[:, -1:] - 1e-6).mean()
        shown = "default" if weight is None else f"{weight:g}"
        print(f"HNSW ↔ exact, weight {shown}: recall@{K} {recall:.4f}")


def http_and_library(store: Path, retriever: Retriever, queries: list[str]) -> None:
    """Count the queries that a live server answers differently from the library, to the last digit."""
    command = [sys.executable, "-m", "diptych", "serve", "--store", str(store), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        try:
            url = next(
                match.group() for line in server.stderr if (match := re.search(r"http://127\.0\.0\.1:\d+", line))
            )
            differing = sum(http_hits(url, query) != library_hits(retriever, query) for query in queries)
        finally:
            server.terminate()
            server.communicate(timeout=60)
    print(f"HTTP ↔ Retriever: {differing} of {len(queries)} answers differ")


def http_hits(url: str, query: str) -> list[tuple[str, float]]:
    """Return ids and scores over HTTP."""
    body = json.dumps({"queries": [query], "k": K}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", body), timeout=30) as response:
        return [(hit["id"], hit["score"]) for hit in json.load(response)["results"][0]["hits"]]


def library_hits(retriever: Retriever, query: str) -> list[tuple[str, float]]:
    """Return ids and scores from the library."""
    return [(hit.id, hit.score) for hit in retriever.search([query], k=K)[0]]


def latency(retriever: Retriever, queries: list[str]) -> None:
    """Measure the latency of one query at a time, in this process."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        retriever.search([query], k=K)
        seconds.append(time.perf_counter() - started)
    ordered = sorted(seconds)
    print(
        f"one query, in process: median {1e3 * statistics.median(seconds):.2f} ms, "
        f"p99 {1e3 * ordered[int(0.99 * len(ordered))]:.2f} ms"
    )


if __name__ == "__main__":
    main()
