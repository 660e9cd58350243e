"""Switch a live service between two real bundles while clients ask; every answer must be one bundle's own.

    python -m benchmarks.switching STORE DATASET [--switches 20] [--clients 2]

STORE holds two bundles or more; the first two are used in turn. Loopback only; ends by itself.
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
    """Load, switch, then compare every answer with what its bundle answers when nobody else is there."""
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
    own = {name: own_answers(store, name, queries) for name in bundles}
    differing = sum(a[0] != b[0] for a, b in zip(*own.values(), strict=True))
    print(f"bundles {' and '.join(bundles)}: {differing} of {len(queries)} queries have another top 10")
    place = {body: number for number, body in enumerate(bodies)}
    store.activate(bundles[0])
    seconds = []
    with serving(options.store) as service, Load(service, bodies, clients=options.clients) as load:
        for number in range(options.switches):
            before = len(load.replies)
            started = time.perf_counter()
            assert service.activate(bundles[(number + 1) % 2]).status == 200
            seconds.append(time.perf_counter() - started)
            wait_until(lambda before=before: len(load.replies) > before + 20 or load.errors)
    statuses = collections.Counter(reply.status for _, reply in load.replies)
    wrong = sum(not own_answer(own[reply.json()["bundle"]][place[body]], reply.json()) for body, reply in load.replies)
    print(
        f"{options.switches} switches, median {statistics.median(seconds):.1f} s; {len(load.replies):,} answers, "
        f"statuses {dict(statuses)}, {len(load.errors)} connection errors, "
        f"{wrong} answers that are not their bundle's own"
    )


def own_answers(store: Store, bundle: str, queries: list[str]) -> list[tuple[list[str], list[float]]]:
    """Ids and scores of each query, from the bundle alone."""
    with open_bundle(store.bundle_path(bundle)) as retriever:
        return [([hit.id for hit in hits], [hit.score for hit in hits]) for hits in retriever.search(queries, k=K)]


def own_answer(own: tuple[list[str], list[float]], answer: dict[str, Any]) -> bool:
    """Whether the answer's scores are the bundle's own, and its ids wherever scores do not tie."""
    hits = answer["results"][0]["hits"]
    near = all(abs(hit["score"] - score) < TOLERANCE for hit, score in zip(hits, own[1], strict=True))
    tied = len(set(own[1])) < len(own[1])
    return near and (tied or [hit["id"] for hit in hits] == own[0])


if __name__ == "__main__":
    main()
