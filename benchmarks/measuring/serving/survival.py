"""Figures 4 to 8: switches, killed engines, overload, a stop, slow clients, and a long run."""

import math
import os
import signal
import statistics
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.measuring.serving.cores import core_allocation, on_separate_cores
from benchmarks.measuring.serving.load import LoadProcess, failures, run_load, saturate
from benchmarks.measuring.serving.record import Figure, Limit, ServingSetup, invalid_notes, no_failures
from benchmarks.measuring.serving.slow import SlowClients
from benchmarks.measuring.serving.speed import CLIENTS, QUIET
from benchmarks.measuring.serving.watch import PERIOD, Memory, MemorySamples, Probes, back_to_normal
from loadtest.report import LatencySummary, Report
from retrieval.errors import DiptychError
from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.service import Service, serving, wait_until

DEADLINE_MS = 10_000.0  # the service's default
LARGE = 500 * 10**6  # bytes of a bundle
GRACE = 3.0  # seconds between SIGTERM and no new connections, as a load balancer needs
MANY_CONNECTIONS = ["--connections", "4000"]  # requests wait while there is no engine; the service allows 4,096
OVERLOAD_CONNECTIONS = 8_000  # more than the number of texts that may wait


def half_of_saturation(service: Service, setup: ServingSetup) -> float:
    """Measure saturation; return half of its rate per second."""
    return saturate(service.port, setup.queries, setup.lengths.saturation, CLIENTS[0]).rate / 2


def switches(setup: ServingSetup) -> Figure:
    """4: twenty switches between two large bundles under load."""
    assert setup.switching
    sizes = bundle_sizes(open_store(setup.switching))
    with serving(setup.switching, **QUIET) as service:
        rate, every = half_of_saturation(service, setup), setup.lengths.between_switches
        options = ["--switch-every", f"{every:g}s"]
        report = run_load(service.port, setup.queries, rate, every * (setup.lengths.switches + 1.5), options)
    assert report.switching
    switched = report.switching.switches
    succeeded = sum(1 for one in switched if one.ended_seconds is not None and one.failure is None)
    during, steady = report.switching.during, report.switching.steady
    small = [f"{name} has {size / 1e6:,.0f} MB; the figure needs 500." for name, size in sizes.items() if size < LARGE]
    return Figure(
        "Switches between two bundles under load",
        [
            no_failures(report, failures(report)),
            Limit(
                "successful switches", succeeded, setup.lengths.switches, at_least=True, detail=f"of {len(switched)}"
            ),
            Limit(
                "p99 while switching, divided by the steady p99", during.p99_ms / steady.p99_ms, 1.5,
                detail=f"{during.p99_ms:.2f} ms against {steady.p99_ms:.2f} ms at {rate:,.0f}/s",
            ),
        ],
        [*small, *invalid_notes(report, "this run")],
    )  # fmt: skip


def killed_engines(setup: ServingSetup) -> Figure:
    """5: kill -9 of the engine under load."""
    kills, between = setup.lengths.kills, setup.lengths.between_kills
    with serving(setup.store, **QUIET) as service:
        load_seconds = float(service.wait_for_log(r"loaded in ([\d.]+) s"))
        rate = half_of_saturation(service, setup)
        with LoadProcess(service.port, setup.queries, rate, (kills + 0.5) * between, MANY_CONNECTIONS) as load:
            outages = [kill_engine(service, setup, due) for due in _times(between, kills)]
            report = load.report()
    return Figure(
        f"kill -9 of the engine, {kills} times under load",
        [
            no_failures(report, failures(report)),
            Limit(
                "seconds until an answer, maximum", max(outages), load_seconds + 1,
                detail=f"median {statistics.median(outages):.2f} s; it loads in {load_seconds:.1f} s without load",
            ),
        ],
        [f"{rate:,.0f}/s, half of saturation; p99 of the run {report.latency.p99_ms:,.0f} ms.",
         *invalid_notes(report, "this run")],
    )  # fmt: skip


def kill_engine(service: Service, setup: ServingSetup, due: float) -> float:
    """Kill the engines at `due`; return the seconds until a new request gets a 200, or infinity if it does not."""
    wait_until(lambda: time.monotonic() >= due)
    engines = wait_until(service.engines)
    client = service.client()
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    try:
        status = client.post("/predict", setup.queries.bodies[0]).status
    except (OSError, IndexError):  # no answer
        status = 0
    outage = time.monotonic() - began
    client.close()
    setup.log(f"killed an engine: {status or 'no answer'} after {outage:.2f} s")
    return outage if status == 200 else math.inf


def overload(setup: ServingSetup) -> Figure:
    """6: three times the saturation rate."""
    seconds = setup.lengths.overload
    with on_separate_cores(serving(setup.store, max_connections=OVERLOAD_CONNECTIONS + 2_000, **QUIET)) as service:
        half = half_of_saturation(service, setup)
        with Probes(service, setup.queries.bodies) as probes, MemorySamples(service) as memories:
            began = time.monotonic()
            run_load(service.port, setup.queries, half, setup.lengths.calm / 4)
            # start-up time of the generator, needed to compute when the load ends
            starting = time.monotonic() - began - setup.lengths.calm / 4
            # memory without a generator: PSS divides the interpreter's file pages among the processes that map them
            ended = time.monotonic() + PERIOD
            wait_until(lambda: memories.seen[-1].at > ended)
            before, calm = memories.seen[-1].bytes, sorted(one.seconds for one in probes.seen)
            began = time.monotonic()
            options = ["--connections", str(OVERLOAD_CONNECTIONS)]
            report = run_load(service.port, setup.queries, 6 * half, seconds, options)
            load_end = began + starting + seconds
            wait_until(lambda: time.monotonic() > load_end + 5)
        usual = max(2 * calm[int(0.99 * len(calm))], 0.01)
        back = back_to_normal(probes.seen, load_end, usual)
    peak = max(one.bytes for one in memories.seen)
    return Figure(
        "Three times the saturation rate", overload_limits(report, before, peak, back),
        [
            f"{report.rate:,.0f}/s requested, {report.offered:,.0f}/s sent, {report.achieved:,.0f}/s answered with "
            f"200; up to {OVERLOAD_CONNECTIONS:,} connections of "
            f"{OVERLOAD_CONNECTIONS + 2_000:,} allowed (DIPTYCH_MAX_CONNECTIONS). "
            f"Normal is a single request within {usual * 1e3:.0f} ms, twice the calm p99 (10 ms at least). "
            f"{core_allocation()}",
            *invalid_notes(report, "this run"),
        ],
    )  # fmt: skip


def overload_limits(report: Report, before: int, peak: int, back: float | None) -> list[Limit]:
    """Return the limits of the figure on overload."""
    refused: LatencySummary | None = report.outcomes.get("429")
    others = report.failed - (refused.count if refused else 0)
    return [
        Limit(
            "ms, p99 of admitted requests", report.latency.p99_ms, DEADLINE_MS, detail=f"of {report.latency.count:,}"
        ),
        Limit(
            "ms until a 429, p99", refused.p99_ms if refused else 0, 20,
            detail=f"{refused.count:,} answers, maximum {refused.max_ms:,.0f} ms" if refused else "no 429",
        ),
        Limit("answers that are neither 200 nor 429", others, 0, detail=f"of {report.sent:,}; {failures(report)}"),
        Limit("peak memory, divided by that before", peak / before, 1.1, detail=f"{_mb(peak)} against {_mb(before)}"),
        Limit("seconds until normal again", math.inf if back is None else back, 2),
    ]  # fmt: skip


def stop_and_slow_clients(setup: ServingSetup) -> Figure:
    """7: SIGTERM under load, and a thousand clients that send a byte every two seconds."""
    stopped, code, seconds = stop_under_load(setup)
    ratios, steady, slow, cut_off = slow_clients(setup)
    p99s = [f"{_p99(a)} with, {_p99(b)} ms without" for a, b in zip(slow, steady, strict=True)]
    failed = sum(one.failed for one in [*steady, *slow])
    return Figure(
        f"SIGTERM under load; {setup.lengths.slow_clients:,} slow-loris connections",
        [
            no_failures(stopped, failures(stopped)),
            Limit("exit code after SIGTERM", code, 0, detail=f"after {seconds:.1f} s, of which {GRACE:g} s are grace"),
            Limit(
                "p99 with slow clients, divided by the p99 without", statistics.median(ratios), 2,
                detail="; ".join(p99s),
            ),
            Limit("failed requests with slow clients", failed, 0, detail=f"of {sum(one.sent for one in slow):,}"),
        ],
        [
            f"The generator stops when /readyz answers 503, like a load balancer; it sent {stopped.sent:,} requests.",
            f"{cut_off:,} slow connections were closed by the service and opened again.",
            *(line for one in [stopped, *steady, *slow] for line in invalid_notes(one, "a run")),
        ],
    )  # fmt: skip


def stop_under_load(setup: ServingSetup) -> tuple[Report, int, float]:
    """Stop the service during a run; return the report, the exit code, and the seconds until the exit."""
    with serving(setup.store, grace_seconds=GRACE, **QUIET) as service:
        rate = half_of_saturation(service, setup)
        with LoadProcess(service.port, setup.queries, rate, setup.lengths.calm + 30) as load:
            before = time.monotonic() + min(10, setup.lengths.calm)
            wait_until(lambda: time.monotonic() > before)
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: service.ask("GET", "/readyz").status == 503)
            load.stop()
            code = service.process.wait(60)
            return load.report(), code, time.monotonic() - began


def _all_open(clients: SlowClients, count: int) -> bool:
    return clients.open >= count


def slow_clients(setup: ServingSetup) -> tuple[list[float], list[Report], list[Report], int]:
    """Return per round the ratio of p99 with and without slow clients, both reports, and the closed connections."""
    steady, slow, cut_off = [], [], 0
    with serving(setup.store, **QUIET) as service:
        rate = half_of_saturation(service, setup)
        for _ in range(setup.lengths.rounds):
            steady.append(run_load(service.port, setup.queries, rate, setup.lengths.calm / 4))
            with SlowClients(service.port, setup.lengths.slow_clients) as clients:
                wait_until(partial(_all_open, clients, setup.lengths.slow_clients))
                slow.append(run_load(service.port, setup.queries, rate, setup.lengths.calm / 4))
            cut_off += clients.cut_off
    ratios = [a.latency.p99_ms / b.latency.p99_ms for a, b in zip(slow, steady, strict=True)]
    return ratios, steady, slow, cut_off


def soak(setup: ServingSetup) -> Figure:
    """8: 70 % of saturation with regular switches."""
    assert setup.switching
    with serving(setup.switching, **QUIET) as service:
        rate = 1.4 * half_of_saturation(service, setup)
        options = ["--switch-every", f"{setup.lengths.between_soak_switches:g}s"]
        with MemorySamples(service) as memories:
            report = run_load(service.port, setup.queries, rate, setup.lengths.soak, options)
    assert report.switching
    first, last = memory_growth(memories.seen)
    errors = [one.failure for one in report.switching.switches if one.failure]
    return Figure(
        f"{setup.lengths.soak / 60:.3g} minutes at 70 % of saturation with switches",
        [
            no_failures(report, failures(report)),
            Limit("switches that failed", len(errors), 0, detail=f"of {len(report.switching.switches)}"),
            Limit(
                "memory in the last fifth, divided by the second fifth", last / first, 1.03, detail=f"of {_mb(first)}"
            ),
        ],
        [f"{rate:,.0f}/s; p99 {report.latency.p99_ms:.1f} ms.", *errors, *invalid_notes(report, "this run")],
    )  # fmt: skip


def memory_growth(seen: Sequence[Memory]) -> tuple[float, float]:
    """Return the median memory in the second and in the last fifth of the time, with exactly one engine."""
    start, span = seen[0].at, (seen[-1].at - seen[0].at) / 5
    fifths = [
        [one.bytes for one in seen if one.engines == 1 and start + part * span <= one.at <= start + (part + 1) * span]
        for part in (1, 4)
    ]
    if not all(fifths):
        raise DiptychError(
            "the soak was too short to compare memory: there was always a switch. Increase its duration."
        )
    return statistics.median(fifths[0]), statistics.median(fifths[1])


def bundle_sizes(store: Store) -> dict[str, int]:
    """Return the bytes of the two newest bundles. Raises DiptychError if there are fewer."""
    names = store.bundles()[-2:]
    if len(names) < 2:
        raise DiptychError(f"{store.path} has fewer than two bundles to switch between. Export another.")
    return {
        name: sum(one.stat().st_size for one in store.bundle_path(name).rglob("*") if one.is_file()) for name in names
    }


def _times(seconds: float, count: int) -> list[float]:
    """Return `count` future times at a distance of `seconds`."""
    begin = time.monotonic()
    return [begin + (number + 1) * seconds for number in range(count)]


def _p99(report: Report) -> str:
    return f"{report.latency.p99_ms:.2f}"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"
