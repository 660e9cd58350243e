"""Measure the latency of searches with the query memory against searches without it.

    python -m benchmarks.memory_cost STORE DATASET [--queries 1000] [--rounds 5] [--threads 1]

For each batch size, both searches alternate over the same test queries in one process. Prints the median time of a
search in milliseconds: from text to label rows ("total"), and its part after the encoder ("search"). The last line is
the latency of single queries over HTTP, also alternating, on one connection to `diptych serve`.
"""

import argparse
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval import Retriever, open_bundle
from training.data.dataset import Dataset

BATCH_SIZES = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of the query memory.")
    parser.add_argument("store", type=Path, help="a store or a bundle's folder, with a query memory")
    parser.add_argument("dataset", type=Path, help="prepared dataset with test queries")
    parser.add_argument("--queries", type=int, default=1_000, help="number of test queries")
    parser.add_argument("--rounds", type=int, default=5, help="passes over the queries")
    parser.add_argument("--threads", type=int, default=1, help="threads of a search")
    options = parser.parse_args()
    texts = Dataset.open(options.dataset).split("test").texts[: options.queries]
    with open_bundle(options.store, threads=options.threads) as retriever:
        memory = retriever.manifest.memory
        print(f"{len(retriever.labels):,} labels, {memory.queries if memory else 0:,} training queries in the memory")
        for size in BATCH_SIZES:
            batches = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
            without, with_memory = alternate(retriever, batches, options.rounds)
            for part, before, after in zip(("total", "search"), without, with_memory, strict=True):
                ratio = f"{after:.3f} / {before:.3f} ms = {after / before:.2f}"
                print(f"batch of {size:2}, {part:6}: {ratio}")
    before, after = over_http(options.store, texts, options.rounds)
    print(f"HTTP, one query     : {after:.3f} / {before:.3f} ms = {after / before:.2f}")


def alternate(
    retriever: Retriever, batches: Sequence[list[str]], rounds: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the medians (total, search) in milliseconds without the memory and with it."""
    times: dict[float | None, list[tuple[float, float]]] = {0.0: [], None: []}
    for number in range(rounds):
        for place, batch in enumerate(batches):
            order = list(times) if (number + place) % 2 else list(times)[::-1]
            for weight in order:
                started = time.perf_counter()
                ranking = retriever.search_rows(batch, 10, memory_weight=weight)
                times[weight].append((time.perf_counter() - started, ranking.timings.search))
    medians = {weight: 1000 * np.median(values, axis=0) for weight, values in times.items()}
    return (medians[0.0][0], medians[0.0][1]), (medians[None][0], medians[None][1])


def over_http(store: Path, texts: Sequence[str], rounds: int) -> tuple[float, float]:
    """Return the median latencies in milliseconds without the memory and with it."""
    command = [sys.executable, "-m", "diptych", "serve", "--store", str(store), "--port", "0"]
    times: dict[str, list[float]] = {', "memory_weight": 0': [], "": []}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        try:
            port = next(int(found[1]) for line in server.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for number in range(rounds * len(texts)):
                for option in list(times) if number % 2 else list(times)[::-1]:
                    body = f'{{"queries": [{json.dumps(texts[number % len(texts)])}]{option}}}'
                    started = time.perf_counter()
                    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                    connection.getresponse().read()
                    times[option].append(1000 * (time.perf_counter() - started))
        finally:
            server.terminate()
            server.communicate(timeout=60)
    without, with_memory = (float(np.median(values)) for values in times.values())
    return without, with_memory


if __name__ == "__main__":
    main()
