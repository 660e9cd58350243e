"""Figure 10: the front's memory, and the time of ordinary requests, beside thousands of hostile connections."""

from benchmarks.measuring.serving_cores import apart, sharing
from benchmarks.measuring.serving_hostile_clients import KINDS, HostileClients
from benchmarks.measuring.serving_load import loaded
from benchmarks.measuring.serving_record import WHOLE, Bar, Bench, Figure, doubts
from benchmarks.measuring.serving_speed import QUIET
from benchmarks.measuring.serving_watch import Watching
from service.loadtest.report import Report
from service.metrics import resident_bytes
from service.settings import Settings
from tests.support.service import Service, serving, wait_until

HOSTILE = 4096
BESIDE = 150_000_000  # bytes of memory that the connections may cost beside their budget
RATE = 300  # ordinary requests a second
OTHERS = 2_000  # connections for the ordinary requests
PERIOD = 0.1  # seconds between two looks at the memory


class FrontMemory(Watching):
    """The most that the front occupied."""

    def __init__(self, service: Service) -> None:
        super().__init__(self._see, PERIOD)
        self._pid = service.process.pid
        self.most = resident_bytes(self._pid) or 0

    def _see(self) -> None:
        self.most = max(self.most, resident_bytes(self._pid) or 0)


def hostile_memory(bench: Bench) -> Figure:
    """10: the front's memory and ordinary requests beside 4,096 hostile connections of each kind."""
    number = HOSTILE * bench.lengths.slow_clients // WHOLE.slow_clients
    budget: int = Settings.model_fields["connection_bytes"].default
    bars, notes = [], []
    with apart(serving(bench.store, max_connections=number + OTHERS, **QUIET)) as service:
        loaded(service.port, bench.queries, RATE, bench.lengths.calm / 4)
        before = resident_bytes(service.process.pid) or 0
        for kind in KINDS:
            memory, calm, beside = one_kind(service, bench, kind, number)
            bars += kind_bars(kind, memory - before, budget, calm, beside)
            bench.tell(f"{kind}: {(memory - before) / 1e6:,.0f} MB more, p99 {_p99(beside)} beside {_p99(calm)} ms")
            notes += [line for report in (calm, beside) for line in doubts(report, f"a run of {kind}")]
    notes[:0] = [
        f"{number:,} hostile connections; {RATE} ordinary requests a second. The front "
        f"had {before / 1e6:,.0f} MB before. A connection that is closed comes back after two seconds. {sharing()}"
    ]
    return Figure(f"{number:,} hostile connections of each kind", bars, notes)


def one_kind(service: Service, bench: Bench, kind: str, number: int) -> tuple[int, Report, Report]:
    """The front's memory at its most, and ordinary requests without hostile connections and beside them."""
    seconds = bench.lengths.calm / 4
    calm = loaded(service.port, bench.queries, RATE, seconds)
    with FrontMemory(service) as memory, HostileClients(service.port, kind, number):
        beside = loaded(service.port, bench.queries, RATE, seconds)
    wait_until(lambda: service.ask("GET", "/readyz").status == 200)
    return memory.most, calm, beside


def kind_bars(kind: str, more: int, budget: int, calm: Report, beside: Report) -> list[Bar]:
    """What one kind is to reach."""
    return [
        Bar(f"{kind}: MB of memory more than before", more / 1e6, (budget + BESIDE) / 1e6),
        Bar(
            f"{kind}: p99 of ordinary requests, in p99s without", beside.latency.p99_ms / calm.latency.p99_ms, 2,
            beside=f"{_p99(beside)} beside {_p99(calm)} ms",
        ),
        Bar(f"{kind}: ordinary requests that failed", beside.failed, 0, beside=f"of {beside.sent:,}"),
    ]  # fmt: skip


def _p99(report: Report) -> str:
    return f"{report.latency.p99_ms:.2f}"
