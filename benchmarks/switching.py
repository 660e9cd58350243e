"""Switch a live service between two real bundles under load; every answer must be that of the bundle it names.

    python -m benchmarks.switching STORE DATASET [--switches 20] [--clients 2]

STORE has at least two bundles; the first two are active in alternation. Loopback only.
"""

import argparse
import collections
import json
import statistics
import time
from pathlib import Path
from typing import Any

from retrieval import open_bundle
from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.service import Load, serving, wait_until
from training.data.dataset import Dataset

QUERIES, K, TOLERANCE = 200, 10, 1e-5


def main() -> None:
    """Send load and switch, then compare every answer with that of its bundle without load."""
    parser = argparse.ArgumentParser(description="Answers while bundles are switched.")
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--switches", type=int, default=20)
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    queries = Dataset.open(options.dataset).split("test").texts[:QUERIES]
    bodies = [json.dumps({"queries": [query], "k": K}).encode() for query in queries]
    store = open_store(options.store)
    bundles = store.bundles()[:2]
    expected = {name: bundle_answers(store, name, queries) for name in bundles}
    differing = sum(a[0] != b[0] for a, b in zip(*expected.values(), strict=True))
    print(f"bundles {' and '.join(bundles)}: {differing} of {len(queries)} queries have another top 10")
    index = {body: number for number, body in enumerate(bodies)}
    store.activate(bundles[0])
    seconds = []
    with serving(options.store) as service, Load(service, bodies, clients=options.clients) as load:
        for number in range(options.switches):
            before = len(load.replies)
            started = time.perf_counter()
            assert service.activate(bundles[(number + 1) % 2]).status == 200
            seconds.append(time.perf_counter() - started)
            wait_until(lambda before=before: len(load.replies) > before + 20 or bool(load.errors))  # type: ignore[misc]  # mypy cannot infer a default argument
    statuses = collections.Counter(reply.status for _, reply in load.replies)
    wrong = sum(
        not matches(expected[reply.json()["bundle"]][index[body]], reply.json()) for body, reply in load.replies
    )
    print(
        f"{options.switches} switches, median {statistics.median(seconds):.1f} s; {len(load.replies):,} answers, "
        f"statuses {dict(statuses)}, {len(load.errors)} connection errors, "
        f"{wrong} answers differ from their bundle's"
    )


def bundle_answers(store: Store, bundle: str, queries: list[str]) -> list[tuple[list[str], list[float]]]:
    """Return ids and scores of each query, searched directly in the bundle."""
    with open_bundle(store.bundle_path(bundle)) as retriever:
        return [([hit.id for hit in hits], [hit.score for hit in hits]) for hits in retriever.search(queries, k=K)]


def matches(expected: tuple[list[str], list[float]], answer: dict[str, Any]) -> bool:
    """Return whether the answer has the expected scores, and the expected ids unless scores tie."""
    hits = answer["results"][0]["hits"]
    near = all(abs(hit["score"] - score) < TOLERANCE for hit, score in zip(hits, expected[1], strict=True))
    tied = len(set(expected[1])) < len(expected[1])
    return near and (tied or [hit["id"] for hit in hits] == expected[0])


if __name__ == "__main__":
    main()
