"""Figure 12: latency of small queries beside heavy clients."""

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.measuring.serving_load import loaded
from benchmarks.measuring.serving_record import Figure, Limit, ServingSetup
from benchmarks.measuring.serving_speed import QUIET
from benchmarks.measuring.systems import ROOT
from loadtest.report import Report
from loadtest.run_stats import OK
from tests.support.service import serving

RATE = 100.0  # small queries per second
TEXTS, K = 256, 100  # of a heavy request: the limits of both
HEAVY = (1, 16)
ALLOWED = 3.0  # times the calm p99
STARTING = 1.0  # seconds until the heavy clients are under way


def fairness(bench: ServingSetup) -> Figure:
    """12: p99 of small queries with 1 and with 16 heavy clients, with a key each and with an address each."""
    bodies = bench.folder / "heavy.txt"
    texts = [*bench.queries.texts[: 8 * TEXTS]]
    requests = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    bodies.write_bytes(b"\n".join(json.dumps({"queries": one, "k": K}).encode() for one in requests))
    bars, notes = [], []
    for keys in (True, False):
        for heavy in HEAVY:
            calm, beside, got = rounds(bench, bodies, heavy, keys)
            who = f"{heavy} heavy client{'s' if heavy > 1 else ''}, {'a key' if keys else 'an address'} each"
            pairs = [(a.latency.p99_ms, b.latency.p99_ms) for a, b in zip(calm, beside, strict=True)]
            ratios = [b / a for a, b in pairs]
            p99s = "; ".join(f"{b:.1f} after {a:.1f} ms" for a, b in pairs)
            name = f"p99 of small queries, times the p99 without heavy clients, {who}"
            bars.append(Limit(name, statistics.median(ratios), ALLOWED, beside=p99s))
            refused = sum(one.count for report in beside for kind, one in report.outcomes.items() if kind != OK)
            bars.append(Limit(f"small queries refused, {who}", refused, 0))
            notes.append(f"{who}: they got {'; '.join(got)}.")
    return Figure(
        "Small queries beside heavy clients",
        bars,
        [
            f"{RATE:g} small queries per second (1 text, k=10) alone and then beside heavy clients, in turn; latencies "
            f"count from when a query was due. A heavy client sends {TEXTS} texts with k={K} after its last "
            "answer.",
            *notes,
        ],
    )


def rounds(bench: ServingSetup, bodies: Path, heavy: int, keys: bool) -> tuple[list[Report], list[Report], list[str]]:
    """Run without and with heavy clients in turn; return both lists of reports, and what the heavy clients got."""
    prefix = "heavy"
    given = {"predict_key": ",".join(["light", *(f"{prefix}-{number}" for number in range(heavy))])} if keys else {}
    calm: list[Report] = []
    beside: list[Report] = []
    got: list[str] = []
    with serving(bench.store, **QUIET, **given) as service:
        small = partial(loaded, service.port, bench.queries, RATE, key="light" if keys else "")
        small(STARTING)
        for _ in range(bench.lengths.rounds):
            calm.append(small(bench.lengths.fairness))
            command = [sys.executable, "-m", "benchmarks.measuring.heavy_clients", str(service.port), str(heavy)]
            command += [str(bodies.resolve()), f"{bench.lengths.fairness + 2 * STARTING}"]
            command += ["--keys", prefix] if keys else []
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            time.sleep(STARTING)
            beside.append(small(bench.lengths.fairness))
            got.append(process.communicate()[0].strip())
            p99s = f"{beside[-1].latency.p99_ms:.1f} ms after {calm[-1].latency.p99_ms:.1f} ms"
            bench.tell(f"{heavy} heavy clients: p99 {p99s}")
    return calm, beside, got
