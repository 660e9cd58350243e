"""Figure 10: memory of the front, and latency of ordinary requests, with thousands of hostile connections."""

import time
from typing import NamedTuple, Self

import psutil

from benchmarks.measuring.serving.cores import core_allocation, on_separate_cores
from benchmarks.measuring.serving.hostile_clients import KINDS, HostileClients
from benchmarks.measuring.serving.load import run_load
from benchmarks.measuring.serving.record import FULL, Figure, Limit, ServingSetup, invalid_notes
from benchmarks.measuring.serving.speed import QUIET
from benchmarks.measuring.serving.watch import PeriodicWatcher
from loadtest.report import Report
from service.observe.metrics import resident_bytes
from service.settings import Settings
from tests.support.service import Service, serving, wait_until

HOSTILE = 4096
MAX_OTHER_BYTES = 150_000_000  # of memory besides the budget of the connections
RATE = 300  # ordinary requests per second
OTHERS = 2_000  # connections for the ordinary requests
PERIOD = 0.1  # seconds between two samples of the memory


class RequestRun(NamedTuple):
    """Report on the ordinary requests, peak memory of the front in bytes, and the share of a core that it used."""

    report: Report
    memory: int
    core: float


class Front(PeriodicWatcher):
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


def hostile_memory(setup: ServingSetup) -> Figure:
    """10: memory of the front, and ordinary requests, with 4,096 hostile connections of each kind."""
    number = HOSTILE * setup.lengths.slow_clients // FULL.slow_clients
    budget: int = Settings.model_fields["connection_bytes"].default
    limits: list[Limit] = []
    notes: list[str] = []
    with on_separate_cores(serving(setup.store, max_connections=number + OTHERS, **QUIET)) as service:
        run_load(service.port, setup.queries, RATE, setup.lengths.calm / 4)
        before = resident_bytes(service.process.pid) or 0
        for kind in KINDS:
            calm, hostile = run_without_and_with(service, setup, kind, number)
            limits += kind_limits(kind, before, budget, calm, hostile)
            setup.log("; ".join(f"{limit.name} {limit.value:.3g}" for limit in limits[-3:]))
            for run in (calm, hostile):
                notes += invalid_notes(run.report, f"a run of {kind}")
    notes[:0] = [
        f"{number:,} hostile connections; {RATE} ordinary requests per second. The front "
        f"had {before / 1e6:,.0f} MB before. A closed connection is opened again after ten seconds. {core_allocation()}"
    ]
    return Figure(f"{number:,} hostile connections of each kind", limits, notes)


def run_without_and_with(
    service: Service, setup: ServingSetup, kind: str, number: int
) -> tuple[RequestRun, RequestRun]:
    """Measure ordinary requests without hostile connections, then with them."""
    seconds = setup.lengths.calm / 4
    with Front(service) as front:
        report = run_load(service.port, setup.queries, RATE, seconds)
    calm = RequestRun(report, front.memory, front.core)
    with Front(service) as front, HostileClients(service.port, kind, number):
        report = run_load(service.port, setup.queries, RATE, seconds)
    wait_until(lambda: service.ask("GET", "/readyz").status == 200)
    return calm, RequestRun(report, front.memory, front.core)


def kind_limits(kind: str, before: int, budget: int, calm: RequestRun, hostile: RequestRun) -> list[Limit]:
    """Return the limits of one kind of connection."""
    p99, calm_p99 = (run.report.latency.p99_ms for run in (hostile, calm))
    return [
        Limit(
            f"{kind}: MB of memory more than before", (hostile.memory - before) / 1e6, (budget + MAX_OTHER_BYTES) / 1e6
        ),
        Limit(
            f"{kind}: p99 of ordinary requests, divided by the p99 without", p99 / calm_p99, 2,
            detail=f"{p99:.2f} and {calm_p99:.2f} ms; the front used {hostile.core:.0%} of a core, {calm.core:.0%} "
            "without",
        ),
        Limit(f"{kind}: ordinary requests that failed", hostile.report.failed, 0, detail=f"of {hostile.report.sent:,}"),
    ]  # fmt: skip
