"""Figure 10: memory of the front and latency of ordinary requests beside thousands of hostile connections."""

import time
from typing import NamedTuple, Self

import psutil

from benchmarks.measuring.serving_cores import apart, sharing
from benchmarks.measuring.serving_hostile_clients import KINDS, HostileClients
from benchmarks.measuring.serving_load import loaded
from benchmarks.measuring.serving_record import WHOLE, Figure, Limit, ServingSetup, invalid_notes
from benchmarks.measuring.serving_speed import QUIET
from benchmarks.measuring.serving_watch import Watching
from loadtest.report import Report
from service.observe.metrics import resident_bytes
from service.settings import Settings
from tests.support.service import Service, serving, wait_until

HOSTILE = 4096
BESIDE = 150_000_000  # bytes of memory that are allowed besides the budget of the connections
RATE = 300  # ordinary requests per second
OTHERS = 2_000  # connections for the ordinary requests
PERIOD = 0.1  # seconds between two looks at the memory


class Run(NamedTuple):
    """Report on the ordinary requests, peak memory of the front in bytes, and the share of a core that it used."""

    report: Report
    memory: int
    core: float


class Front(Watching):
    """Measure peak memory and CPU share of the front within a `with` block."""

    def __init__(self, service: Service) -> None:
        super().__init__(self._see, PERIOD)
        self._pid = service.process.pid
        self._process = psutil.Process(self._pid)
        self.memory = 0
        self.core = 0.0

    def __enter__(self) -> Self:
        self._began, self._used = time.monotonic(), self._cpu_seconds()
        self._see()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self.core = (self._cpu_seconds() - self._used) / (time.monotonic() - self._began)
        super().__exit__()

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _see(self) -> None:
        self.memory = max(self.memory, resident_bytes(self._pid) or 0)


def hostile_memory(bench: ServingSetup) -> Figure:
    """10: memory of the front and ordinary requests beside 4,096 hostile connections of each kind."""
    number = HOSTILE * bench.lengths.slow_clients // WHOLE.slow_clients
    budget: int = Settings.model_fields["connection_bytes"].default
    bars: list[Limit] = []
    notes: list[str] = []
    with apart(serving(bench.store, max_connections=number + OTHERS, **QUIET)) as service:
        loaded(service.port, bench.queries, RATE, bench.lengths.calm / 4)
        before = resident_bytes(service.process.pid) or 0
        for kind in KINDS:
            calm, beside = side_by_side(service, bench, kind, number)
            bars += kind_bars(kind, before, budget, calm, beside)
            bench.tell("; ".join(f"{bar.asked} {bar.value:.3g}" for bar in bars[-3:]))
            for run in (calm, beside):
                notes += invalid_notes(run.report, f"a run of {kind}")
    notes[:0] = [
        f"{number:,} hostile connections; {RATE} ordinary requests per second. The front "
        f"had {before / 1e6:,.0f} MB before. A connection that is closed comes back after ten seconds. {sharing()}"
    ]
    return Figure(f"{number:,} hostile connections of each kind", bars, notes)


def side_by_side(service: Service, bench: ServingSetup, kind: str, number: int) -> tuple[Run, Run]:
    """Measure ordinary requests without hostile connections, then with them."""
    seconds = bench.lengths.calm / 4
    with Front(service) as front:
        report = loaded(service.port, bench.queries, RATE, seconds)
    calm = Run(report, front.memory, front.core)
    with Front(service) as front, HostileClients(service.port, kind, number):
        report = loaded(service.port, bench.queries, RATE, seconds)
    wait_until(lambda: service.ask("GET", "/readyz").status == 200)
    return calm, Run(report, front.memory, front.core)


def kind_bars(kind: str, before: int, budget: int, calm: Run, beside: Run) -> list[Limit]:
    """Return the bars of one kind of connection."""
    p99, calm_p99 = (run.report.latency.p99_ms for run in (beside, calm))
    return [
        Limit(f"{kind}: MB of memory more than before", (beside.memory - before) / 1e6, (budget + BESIDE) / 1e6),
        Limit(
            f"{kind}: p99 of ordinary requests, in p99s without", p99 / calm_p99, 2,
            beside=f"{p99:.2f} beside {calm_p99:.2f} ms; the front used {beside.core:.0%} of a core, {calm.core:.0%} "
            "without",
        ),
        Limit(f"{kind}: ordinary requests that failed", beside.report.failed, 0, beside=f"of {beside.report.sent:,}"),
    ]  # fmt: skip
