"""Figures 4 to 8: switches, killed engines, too much load, a stop, slow clients, and a long run."""

import math
import os
import signal
import statistics
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.measuring.serving_cores import apart, sharing
from benchmarks.measuring.serving_load import Load, failures, loaded, saturate
from benchmarks.measuring.serving_record import Bar, Bench, Figure, doubts, no_failures
from benchmarks.measuring.serving_slow import SlowClients
from benchmarks.measuring.serving_speed import CLIENTS, QUIET
from benchmarks.measuring.serving_watch import PERIOD, Memories, Memory, Probes, back_to_normal
from loadtest.report import Latencies, Report
from retrieval.errors import DiptychError
from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.service import Service, serving, wait_until

DEADLINE_MS = 10_000.0  # the service's default
LARGE = 500 * 10**6  # bytes of a bundle
GRACE = 3.0  # seconds between SIGTERM and no new connections, as a load balancer needs
WAITING = ["--connections", "4000"]  # many wait while there is no engine; the service allows 4,096
CROWD = 8_000  # connections under too much load: more than texts may wait


def half_of_saturation(service: Service, bench: Bench) -> float:
    """Half of what the service answers now, a second."""
    return saturate(service.port, bench.queries, bench.lengths.saturation, CLIENTS[0]).rate / 2


def switches(bench: Bench) -> Figure:
    """4: twenty switches between two large bundles under load."""
    assert bench.switching
    sizes = bundle_sizes(open_store(bench.switching))
    with serving(bench.switching, **QUIET) as service:
        rate, every = half_of_saturation(service, bench), bench.lengths.between_switches
        options = ["--switch-every", f"{every:g}s"]
        report = loaded(service.port, bench.queries, rate, every * (bench.lengths.switches + 1.5), options)
    assert report.switching
    made = report.switching.switches
    went_well = sum(1 for one in made if one.ended_seconds is not None and one.failure is None)
    during, steady = report.switching.during, report.switching.steady
    small = [f"{name} has {size / 1e6:,.0f} MB, where 500 are asked." for name, size in sizes.items() if size < LARGE]
    return Figure(
        "Switches between two bundles under load",
        [
            no_failures(report, failures(report)),
            Bar("switches that went well", went_well, bench.lengths.switches, least=True, beside=f"of {len(made)}"),
            Bar(
                "p99 while switching, in steady p99s", during.p99_ms / steady.p99_ms, 1.5,
                beside=f"{during.p99_ms:.2f} ms against {steady.p99_ms:.2f} ms at {rate:,.0f}/s",
            ),
        ],
        [*small, *doubts(report, "this run")],
    )  # fmt: skip


def killed_engines(bench: Bench) -> Figure:
    """5: kill -9 of the engine under load."""
    kills, between = bench.lengths.kills, bench.lengths.between_kills
    with serving(bench.store, **QUIET) as service:
        load_seconds = float(service.wait_for_log(r"loaded in ([\d.]+) s"))
        rate = half_of_saturation(service, bench)
        with Load(service.port, bench.queries, rate, (kills + 0.5) * between, WAITING) as load:
            away = [killed(service, bench, due) for due in _every(between, kills)]
            report = load.report()
    return Figure(
        f"kill -9 of the engine, {kills} times under load",
        [
            no_failures(report, failures(report)),
            Bar(
                "seconds until an answer, the longest", max(away), load_seconds + 1,
                beside=f"median {statistics.median(away):.2f} s; the bundle loads in {load_seconds:.1f} s when calm",
            ),
        ],
        [f"{rate:,.0f}/s, half of saturation; p99 over the whole run {report.latency.p99_ms:,.0f} ms.",
         *doubts(report, "this run")],
    )  # fmt: skip


def killed(service: Service, bench: Bench, due: float) -> float:
    """Seconds from the engine's end until a request sent after it is answered with 200; infinite when it is not."""
    wait_until(lambda: time.monotonic() >= due)
    engines = wait_until(service.engines)
    client = service.client()
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    try:
        status = client.post("/predict", bench.queries.bodies[0]).status
    except (OSError, IndexError):  # no answer in time, or none at all
        status = 0
    away = time.monotonic() - began
    client.close()
    bench.tell(f"killed an engine: {status or 'no answer'} after {away:.2f} s")
    return away if status == 200 else math.inf


def overload(bench: Bench) -> Figure:
    """6: three times the saturation rate."""
    seconds = bench.lengths.overload
    with apart(serving(bench.store, max_connections=CROWD + 2_000, **QUIET)) as service:
        half = half_of_saturation(service, bench)
        with Probes(service, bench.queries.bodies) as probes, Memories(service) as memories:
            began = time.monotonic()
            loaded(service.port, bench.queries, half, bench.lengths.calm / 4)
            # the generator's own start, without which nobody could say when the load ends
            starting = time.monotonic() - began - bench.lengths.calm / 4
            # as it is without a generator, which shares the interpreter's files and so takes a part of them off it
            ended = time.monotonic() + PERIOD
            wait_until(lambda: memories.seen[-1].at > ended)
            before, calm = memories.seen[-1].bytes, sorted(one.seconds for one in probes.seen)
            began = time.monotonic()
            options = ["--connections", str(CROWD)]
            report = loaded(service.port, bench.queries, 6 * half, seconds, options)
            over = began + starting + seconds
            wait_until(lambda: time.monotonic() > over + 5)
        usual = max(2 * calm[int(0.99 * len(calm))], 0.01)
        back = back_to_normal(probes.seen, over, usual)
    most = max(one.bytes for one in memories.seen)
    return Figure(
        "Three times the saturation rate", overload_bars(report, before, most, back),
        [
            f"{report.rate:,.0f}/s asked, {report.offered:,.0f}/s sent, {report.achieved:,.0f}/s answered with 200; up "
            f"to {CROWD:,} connections, {CROWD + 2_000:,} allowed by DIPTYCH_MAX_CONNECTIONS. Normal is a single "
            f"request within {usual * 1e3:.0f} ms, twice the calm p99 (10 ms at least). {sharing()}",
            *doubts(report, "this run"),
        ],
    )  # fmt: skip


def overload_bars(report: Report, before: int, most: int, back: float | None) -> list[Bar]:
    """What stands of service under too much load."""
    turned: Latencies | None = report.outcomes.get("429")
    others = report.failed - (turned.count if turned else 0)
    return [
        Bar("ms, p99 of the admitted", report.latency.p99_ms, DEADLINE_MS, beside=f"{report.latency.count:,} of them"),
        Bar(
            "ms until a 429, p99", turned.p99_ms if turned else 0, 20,
            beside=f"{turned.count:,} of them, the slowest {turned.max_ms:,.0f} ms" if turned else "there was none",
        ),
        Bar("answers that are neither 200 nor 429", others, 0, beside=f"of {report.sent:,}; {failures(report)}"),
        Bar("memory at its most, of that before", most / before, 1.1, beside=f"{_mb(most)} against {_mb(before)}"),
        Bar("seconds until normal again", math.inf if back is None else back, 2),
    ]  # fmt: skip


def stop_and_slow_clients(bench: Bench) -> Figure:
    """7: SIGTERM under load, and a thousand clients that send a byte now and then."""
    stopped, code, seconds = stop_under_load(bench)
    ratios, steady, slow, cut_off = slow_clients(bench)
    p99s = [f"{_p99(a)} beside {_p99(b)} ms" for a, b in zip(slow, steady, strict=True)]
    failed = sum(one.failed for one in [*steady, *slow])
    return Figure(
        f"SIGTERM under load; {bench.lengths.slow_clients:,} slow-loris connections",
        [
            no_failures(stopped, failures(stopped)),
            Bar("exit code after SIGTERM", code, 0, beside=f"{seconds:.1f} s after it, {GRACE:g} s of them grace"),
            Bar("p99 beside slow clients, in p99s without", statistics.median(ratios), 2, beside="; ".join(p99s)),
            Bar("requests that failed beside slow clients", failed, 0, beside=f"of {sum(one.sent for one in slow):,}"),
        ],
        [
            f"The generator stops when /readyz says no, as a balancer would; until then {stopped.sent:,} went out.",
            f"{cut_off:,} slow connections were cut off and began anew.",
            *(line for one in [stopped, *steady, *slow] for line in doubts(one, "a run")),
        ],
    )  # fmt: skip


def stop_under_load(bench: Bench) -> tuple[Report, int, float]:
    """A run until the service is asked to end: its report, the service's exit code, and the seconds it took."""
    with serving(bench.store, grace_seconds=GRACE, **QUIET) as service:
        rate = half_of_saturation(service, bench)
        with Load(service.port, bench.queries, rate, bench.lengths.calm + 30) as load:
            before = time.monotonic() + min(10, bench.lengths.calm)
            wait_until(lambda: time.monotonic() > before)
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: service.ask("GET", "/readyz").status == 503)
            load.stop()
            code = service.process.wait(60)
            return load.report(), code, time.monotonic() - began


def _all_open(clients: SlowClients, count: int) -> bool:
    return clients.open >= count


def slow_clients(bench: Bench) -> tuple[list[float], list[Report], list[Report], int]:
    """p99 with them beside that without, round by round; the reports of both, and how many were cut off."""
    steady, slow, cut_off = [], [], 0
    with serving(bench.store, **QUIET) as service:
        rate = half_of_saturation(service, bench)
        for _ in range(bench.lengths.rounds):
            steady.append(loaded(service.port, bench.queries, rate, bench.lengths.calm / 4))
            with SlowClients(service.port, bench.lengths.slow_clients) as clients:
                wait_until(partial(_all_open, clients, bench.lengths.slow_clients))
                slow.append(loaded(service.port, bench.queries, rate, bench.lengths.calm / 4))
            cut_off += clients.cut_off
    ratios = [a.latency.p99_ms / b.latency.p99_ms for a, b in zip(slow, steady, strict=True)]
    return ratios, steady, slow, cut_off


def soak(bench: Bench) -> Figure:
    """8: 70 % of saturation with a switch now and then."""
    assert bench.switching
    with serving(bench.switching, **QUIET) as service:
        rate = 1.4 * half_of_saturation(service, bench)
        options = ["--switch-every", f"{bench.lengths.between_soak_switches:g}s"]
        with Memories(service) as memories:
            report = loaded(service.port, bench.queries, rate, bench.lengths.soak, options)
    assert report.switching
    first, last = grown(memories.seen)
    trouble = [one.failure for one in report.switching.switches if one.failure]
    return Figure(
        f"{bench.lengths.soak / 60:.3g} minutes at 70 % of saturation with switches",
        [
            no_failures(report, failures(report)),
            Bar("switches that failed", len(trouble), 0, beside=f"of {len(report.switching.switches)}"),
            Bar("memory in the last fifth, of that in the second", last / first, 1.03, beside=f"then {_mb(first)}"),
        ],
        [f"{rate:,.0f}/s; p99 {report.latency.p99_ms:.1f} ms.", *trouble, *doubts(report, "this run")],
    )  # fmt: skip


def grown(seen: Sequence[Memory]) -> tuple[float, float]:
    """Median memory in the second fifth of the time and in the last, of moments with one engine alone."""
    start, span = seen[0].at, (seen[-1].at - seen[0].at) / 5
    fifths = [
        [one.bytes for one in seen if one.engines == 1 and start + part * span <= one.at <= start + (part + 1) * span]
        for part in (1, 4)
    ]
    if not all(fifths):
        raise DiptychError("the soak was too short to compare memory: there was always a switch. Let it take longer.")
    return statistics.median(fifths[0]), statistics.median(fifths[1])


def bundle_sizes(store: Store) -> dict[str, int]:
    """Bytes of the two newest bundles. Raises DiptychError when there are fewer."""
    names = store.bundles()[-2:]
    if len(names) < 2:
        raise DiptychError(f"{store.path} has fewer than two bundles to switch between; export another.")
    return {
        name: sum(one.stat().st_size for one in store.bundle_path(name).rglob("*") if one.is_file()) for name in names
    }


def _every(seconds: float, times: int) -> list[float]:
    begin = time.monotonic()
    return [begin + (number + 1) * seconds for number in range(times)]


def _p99(report: Report) -> str:
    return f"{report.latency.p99_ms:.2f}"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"
