"""Every metric and every bucket; the registry is passed in, so two services in one process do not share figures."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LOAD_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
BATCH_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCH_TOKENS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
ENGINE_STAGES = ("tokenize", "encode", "search", "serialize")
SWITCHES = ("done", "failed", "fallback", "preempted")
# Background tasks, see docs/decisions/0067; "callback" stands for callbacks of the event loop.
TASKS = (
    "opening", "bundle_loading", "connection_watch", "store_watch", "store_follow", "engine_replacement", "fall_back",
    "generation_closing", "comparison_opening", "comparison_closing", "trace_export", "callback",
)  # fmt: skip


class Watched(Protocol):
    """What the figures of a generation are read from."""

    name: str
    number: int

    @property
    def unfinished(self) -> int:
        """Requests admitted and not answered."""

    @property
    def engine(self) -> int | None:
        """Process id of its engine, if it has one just now."""


class Metrics:
    """The service's own figures. Stages of the engine are counted once a batch, `queue` and `total` once a request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        labels = ["route", "code"]
        self._requests = Counter("diptych_requests", "Answers by route and status", labels, registry=registry)
        self._answers: dict[tuple[str, int], Counter] = {}
        self.client_deadlines = Counter(
            "diptych_client_deadlines",
            "Answers 504 because the deadline that the client set had passed",
            registry=registry,
        )
        stage = Histogram(
            "diptych_stage_seconds", "Seconds in each stage", ["stage"], buckets=SECONDS, registry=registry
        )
        self.queue_seconds = stage.labels("queue")
        self.total_seconds = stage.labels("total")
        self._engine_seconds = [stage.labels(name) for name in ENGINE_STAGES]
        self.batch_queries = Histogram(
            "diptych_batch_queries", "Texts in one batch of the engine", buckets=BATCH_QUERIES, registry=registry
        )
        self.batch_tokens = Histogram(
            "diptych_batch_tokens", "Tokens in one batch, without padding", buckets=BATCH_TOKENS, registry=registry
        )
        self.padding = Histogram(
            "diptych_padding_ratio", "Padding's share of what a batch encodes", buckets=SHARES, registry=registry
        )
        self.waiting = Gauge("diptych_waiting_queries", "Texts that no engine has yet", registry=registry)
        self.unfinished = Gauge("diptych_unfinished_requests", "Requests admitted, not yet answered", registry=registry)
        self.rejections = Counter(
            "diptych_rejections", "Requests turned away or given up", ["reason"], registry=registry
        )
        self.wrong_keys = Counter(
            "diptych_wrong_keys", "Wrong keys by the header they came in", ["header"], registry=registry
        )
        self.quarantined = Counter(
            "diptych_quarantined_queries", "Queries put in quarantine because they ended engines", registry=registry
        )
        self.full_scans = Counter(
            "diptych_full_scans",
            "Queries compared with every label because the index found too few",
            registry=registry,
        )
        self.cache = Counter("diptych_cache_requests", "Requests looked up in the cache", ["result"], registry=registry)
        self.cache_bytes = Gauge("diptych_cache_bytes", "Answers kept in the cache", registry=registry)
        self.connections = Gauge("diptych_connections", "Open connections", registry=registry)
        self.connection_bytes = Gauge(
            "diptych_connection_bytes", "Received and not answered, or not taken by clients", registry=registry
        )
        self._generations = _Generations()
        registry.register(self._generations)
        self.generation = Gauge(
            "diptych_generation_info", "1 for the bundle that is served", ["bundle", "generation"], registry=registry
        )
        self.switches = Counter("diptych_switches", "Changes of bundle by result", ["result"], registry=registry)
        for result in SWITCHES:  # a series that begins at 1 has not increased: its first event would ring no alert
            self.switches.labels(result)
        self.switch_seconds = Histogram(
            "diptych_switch_seconds", "Seconds a change of bundle took", buckets=LOAD_SECONDS, registry=registry
        )
        self.restarts = Counter("diptych_engine_restarts", "Engines that died and were replaced", registry=registry)
        self.task_failures = Counter(
            "diptych_task_failures", "Failures of background tasks, retried ones included", ["task"], registry=registry
        )
        for task in TASKS:
            self.task_failures.labels(task)

    def answered(self, route: str, status: int) -> None:
        """Count one answer."""
        counter = self._answers.get((route, status))
        if counter is None:  # looking labels up costs more than counting
            counter = self._answers[route, status] = self._requests.labels(route, str(status))
        counter.inc()

    def batch(self, queries: int, seconds: Sequence[float], tokens: int, padding: int, full_scans: int) -> None:
        """Count one answered batch. `seconds` are those of ENGINE_STAGES."""
        self.batch_queries.observe(queries)
        if encoded := tokens + padding:
            self.batch_tokens.observe(tokens)
            self.padding.observe(padding / encoded)
        for histogram, duration in zip(self._engine_seconds, seconds, strict=True):
            histogram.observe(duration)
        if full_scans:
            self.full_scans.inc(full_scans)

    def serving(self, bundle: str, generation: int) -> None:
        """From now on this generation takes the requests."""
        self.generation.clear()
        self.generation.labels(bundle, str(generation)).set(1)

    def begins(self, generation: Watched) -> None:
        """A generation has opened: its figures are shown until it `ends`."""
        self._generations.living.append(generation)

    def ends(self, generation: Watched) -> None:
        if generation in self._generations.living:
            self._generations.living.remove(generation)

    def watch(self, waiting: Callable[[], int], unfinished: Callable[[], int]) -> None:
        """Read the two depths when somebody asks for them, not on every request."""
        self.waiting.set_function(waiting)
        self.unfinished.set_function(unfinished)


class _Generations(Collector):
    """Figures that are read when somebody asks for them, for as long as a generation lives."""

    def __init__(self) -> None:
        self.living: list[Watched] = []

    def collect(self) -> Iterator[Metric]:
        labels = ["bundle", "generation"]
        flying = GaugeMetricFamily("diptych_in_flight", "Requests admitted, not yet answered", labels=labels)
        memory = GaugeMetricFamily("diptych_engine_resident_bytes", "Memory that an engine occupies", labels=labels)
        for one in self.living:
            values = [one.name, str(one.number)]
            flying.add_metric(values, one.unfinished)
            if one.engine and (occupied := resident_bytes(one.engine)):
                memory.add_metric(values, occupied)
        yield flying
        yield memory


def resident_bytes(pid: int) -> int | None:
    """What a process occupies of the memory; None when it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")), None)
    return int(kilobytes) * 1024 if kilobytes else None  # a process that has just ended has no such line
