"""Figure 12: latency of small queries beside heavy clients."""

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring.serving_record import Bar, Bench, Figure
from benchmarks.measuring.serving_speed import QUIET
from benchmarks.measuring.systems import ROOT
from tests.support.service import Service, serving

RATE = 100.0  # small queries per second
TEXTS, K = 256, 100  # of a heavy request: the limits of both
HEAVY = (1, 16)
ALLOWED = 3.0  # times the calm p99
STARTING = 1.0  # seconds until the heavy clients are under way


class Run(NamedTuple):
    """Latency and statuses of the small queries of one run, and the statuses of the heavy clients as text."""

    p99_ms: float
    statuses: Counter[int]
    heavy: str = ""


def fairness(bench: Bench) -> Figure:
    """12: p99 of small queries with 1 and with 16 heavy clients, with a key each and with an address each."""
    bodies = bench.folder / "heavy.txt"
    texts = [*bench.queries.texts[: 8 * TEXTS]]
    requests = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    bodies.write_bytes(b"\n".join(json.dumps({"queries": one, "k": K}).encode() for one in requests))
    bars, notes = [], []
    for keys in (True, False):
        for heavy in HEAVY:
            calm, loaded = rounds(bench, bodies, heavy, keys)
            who = f"{heavy} heavy client{'s' if heavy > 1 else ''}, {'a key' if keys else 'an address'} each"
            ratios = [b.p99_ms / a.p99_ms for a, b in zip(calm, loaded, strict=True)]
            p99s = "; ".join(f"{b.p99_ms:.1f} after {a.p99_ms:.1f} ms" for a, b in zip(calm, loaded, strict=True))
            name = f"p99 of small queries, times the p99 without heavy clients, {who}"
            bars.append(Bar(name, statistics.median(ratios), ALLOWED, beside=p99s))
            refused = sum(count for run in loaded for status, count in run.statuses.items() if status != 200)
            bars.append(Bar(f"small queries refused, {who}", refused, 0))
            notes.append(f"{who}: they got {'; '.join(run.heavy for run in loaded)}.")
    return Figure(
        "Small queries beside heavy clients",
        bars,
        [
            f"{RATE:g} small queries per second (1 text, k=10) alone and then beside heavy clients, in turn; a heavy "
            f"one sends {TEXTS} texts with k={K} as soon as it has its last answer.",
            *notes,
        ],
    )


def rounds(bench: Bench, bodies: Path, heavy: int, keys: bool) -> tuple[list[Run], list[Run]]:
    """Run without and with heavy clients in turn; return both lists of runs."""
    prefix = "heavy"
    given = {"predict_key": ",".join(["light", *(f"{prefix}-{number}" for number in range(heavy))])} if keys else {}
    calm, loaded = [], []
    with serving(bench.store, **QUIET, **given) as service:
        small_queries(service, bench, STARTING)
        for _ in range(bench.lengths.rounds):
            calm.append(small_queries(service, bench, bench.lengths.fairness))
            command = [sys.executable, "-m", "benchmarks.measuring.heavy_clients", str(service.port), str(heavy)]
            command += [str(bodies.resolve()), f"{bench.lengths.fairness + 2 * STARTING}"]
            command += ["--keys", prefix] if keys else []
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            time.sleep(STARTING)
            run = small_queries(service, bench, bench.lengths.fairness)
            loaded.append(run._replace(heavy=process.communicate()[0].strip()))
            bench.tell(f"{heavy} heavy clients: p99 {loaded[-1].p99_ms:.1f} ms after {calm[-1].p99_ms:.1f} ms")
    return calm, loaded


def small_queries(service: Service, bench: Bench, seconds: float) -> Run:
    """Send single queries at RATE over one connection. Latency counts from sending: a late query is not charged."""
    client = service.client()
    latencies, statuses = [], Counter[int]()
    began = time.perf_counter()
    for number in range(round(RATE * seconds)):
        time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        sent = time.perf_counter()
        if sent - began > 2 * seconds:
            break
        reply = client.post("/predict", bench.queries.bodies[number % len(bench.queries.bodies)], X_Api_Key="light")
        latencies.append(time.perf_counter() - sent)
        statuses[reply.status] += 1
    client.close()
    return Run(sorted(latencies)[int(0.99 * len(latencies))] * 1e3, statuses)
