"""Figure 12: latency of small queries while heavy clients send requests."""

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.measuring.serving.load import run_load
from benchmarks.measuring.serving.record import Figure, Limit, ServingSetup
from benchmarks.measuring.serving.speed import QUIET
from benchmarks.measuring.systems import ROOT
from loadtest.report import Report
from loadtest.run_stats import OK
from tests.support.service import serving

RATE = 100.0  # small queries per second
TEXTS, K = 256, 100  # of a heavy request: the limits of both
HEAVY = (1, 16)
MAX_RATIO = 3.0  # p99 with heavy clients divided by p99 without
STARTUP_SECONDS = 1.0  # until the heavy clients send requests


def fairness(setup: ServingSetup) -> Figure:
    """12: p99 of small queries with 1 and with 16 heavy clients, with a key each and with an address each."""
    bodies = setup.folder / "heavy.txt"
    texts = [*setup.queries.texts[: 8 * TEXTS]]
    requests = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    bodies.write_bytes(b"\n".join(json.dumps({"queries": one, "k": K}).encode() for one in requests))
    limits, notes = [], []
    for keys in (True, False):
        for heavy in HEAVY:
            calm, loaded, counts = rounds(setup, bodies, heavy, keys)
            clients = f"{heavy} heavy client{'s' if heavy > 1 else ''}, {'a key' if keys else 'an address'} each"
            pairs = [(a.latency.p99_ms, b.latency.p99_ms) for a, b in zip(calm, loaded, strict=True)]
            ratios = [b / a for a, b in pairs]
            p99s = "; ".join(f"{b:.1f} ms with, {a:.1f} ms without" for a, b in pairs)
            name = f"p99 of small queries, times the p99 without heavy clients, {clients}"
            limits.append(Limit(name, statistics.median(ratios), MAX_RATIO, detail=p99s))
            refused = sum(one.count for report in loaded for kind, one in report.outcomes.items() if kind != OK)
            limits.append(Limit(f"small queries refused, {clients}", refused, 0))
            notes.append(f"{clients}: their answers: {'; '.join(counts)}.")
    return Figure(
        "Small queries with heavy clients",
        limits,
        [
            f"{RATE:g} small queries per second (1 text, k=10), without and with heavy clients in alternation; latency "
            f"counts from the moment each query was due. A heavy client sends {TEXTS} texts with k={K} after each "
            "answer.",
            *notes,
        ],
    )


def rounds(setup: ServingSetup, bodies: Path, heavy: int, keys: bool) -> tuple[list[Report], list[Report], list[str]]:
    """Run without and with heavy clients in alternation; return both lists of reports, and the heavy answers."""
    prefix = "heavy"
    settings = {"predict_key": ",".join(["light", *(f"{prefix}-{number}" for number in range(heavy))])} if keys else {}
    calm: list[Report] = []
    loaded: list[Report] = []
    counts: list[str] = []
    with serving(setup.store, **QUIET, **settings) as service:
        small = partial(run_load, service.port, setup.queries, RATE, key="light" if keys else "")
        small(STARTUP_SECONDS)
        for _ in range(setup.lengths.rounds):
            calm.append(small(setup.lengths.fairness))
            command = [sys.executable, "-m", "benchmarks.measuring.heavy_clients", str(service.port), str(heavy)]
            command += [str(bodies.resolve()), f"{setup.lengths.fairness + 2 * STARTUP_SECONDS}"]
            command += ["--keys", prefix] if keys else []
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            time.sleep(STARTUP_SECONDS)
            loaded.append(small(setup.lengths.fairness))
            counts.append(process.communicate()[0].strip())
            p99s = f"{loaded[-1].latency.p99_ms:.1f} ms with, {calm[-1].latency.p99_ms:.1f} ms without"
            setup.log(f"{heavy} heavy clients: p99 {p99s}")
    return calm, loaded, counts
