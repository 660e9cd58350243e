"""Metrics for Prometheus. The registry is passed in, so that two services in one process do not share metrics."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# upper bounds of the buckets
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SWITCH_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
TEXTS_PER_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS_PER_BATCH = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
PADDING_RATIOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)

ENGINE_STAGES = ("tokenize", "encode", "search", "serialize")
SWITCH_RESULTS = ("done", "failed", "fallback", "preempted")
# Background tasks, see docs/decisions/0067; "callback" stands for callbacks of the event loop.
TASKS = (
    "opening", "bundle_loading", "connection_watch", "store_watch", "store_follow", "engine_replacement", "fall_back",
    "generation_closing", "comparison_opening", "comparison_closing", "trace_export", "callback",
)  # fmt: skip


class ObservedGeneration(Protocol):
    """The part of a generation that metrics are read from."""

    name: str
    number: int

    @property
    def unfinished(self) -> int:
        """Requests admitted and not answered."""

    @property
    def engines(self) -> list[int]:
        """Process ids of its processes."""


class Metrics:
    """The metrics of the service. Engine stages are counted once per batch, `queue` and `total` once per request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._generations = GenerationCollector()
        ProcessCollector(registry=registry)
        registry.register(self._generations)
        self._add_requests()
        self._add_stages()
        self._add_queue()
        self._add_connections()
        self._add_bundles()

    def _add_requests(self) -> None:
        self._requests = self._counter("requests", "HTTP responses by route and status code", "route", "code")
        self._responses: dict[tuple[str, int], Counter] = {}
        self.client_deadlines = self._counter(
            "client_deadlines", "Responses 504 because the client's deadline (X-Deadline-Ms) had passed"
        )
        self.rejections = self._counter("rejections", "Requests and connections rejected or abandoned", "reason")
        self.wrong_keys = self._counter("wrong_keys", "Requests with a wrong key, by header", "header")
        self.cache = self._counter("cache_requests", "Lookups in the response cache by result", "result")
        self.cache_bytes = self._gauge("cache_bytes", "Size of the response cache in bytes")

    def _add_stages(self) -> None:
        self.stage_seconds = self._histogram("stage_seconds", "Duration of each stage in seconds", SECONDS, "stage")
        self.queue_seconds = self.stage_seconds.labels("queue")
        self.total_seconds = self.stage_seconds.labels("total")
        self._engine_seconds = [self.stage_seconds.labels(name) for name in ENGINE_STAGES]
        self.batch_queries = self._histogram("batch_queries", "Texts per batch", TEXTS_PER_BATCH)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens per batch, without padding", TOKENS_PER_BATCH)
        self.padding = self._histogram(
            "padding_ratio", "Fraction of a batch's encoded tokens that is padding", PADDING_RATIOS
        )
        self.full_scans = self._counter(
            "full_scans",
            "Queries compared with every label, or with more clusters, because the index found too few",
        )

    def _add_queue(self) -> None:
        self.waiting = self._gauge("waiting_queries", "Texts that wait for an engine")
        self.unfinished = self._gauge("unfinished_requests", "Requests admitted and not answered")
        self.quarantined = self._counter("quarantined_queries", "Queries quarantined because they crashed engines")

    def _add_connections(self) -> None:
        self.connections = self._gauge("connections", "Open connections")
        self.connection_bytes = self._gauge(
            "connection_bytes", "Bytes of requests without an answer and of answers that clients have not read"
        )

    def _add_bundles(self) -> None:
        self.generation = self._gauge("generation_info", "1 for the generation that is served", "bundle", "generation")
        self.switches = self._counter("switches", "Bundle switches by result", "result")
        self.switch_seconds = self._histogram("switch_seconds", "Duration of a bundle switch", SWITCH_SECONDS)
        self.restarts = self._counter("engine_restarts", "Engines that crashed and were replaced")
        self.task_failures = self._counter("task_failures", "Failures of background tasks, with retries", "task")
        # a series that begins at 1 shows no increase, so that its first event would fire no alert
        for result in SWITCH_RESULTS:
            self.switches.labels(result)
        for task in TASKS:
            self.task_failures.labels(task)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"diptych_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"diptych_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"diptych_{name}", help_text, labels, buckets=buckets, registry=self.registry)

    def count_response(self, route: str, status: int) -> None:
        """Count one response."""
        counter = self._responses.get((route, status))
        if counter is None:  # looking labels up costs more than counting
            counter = self._responses[route, status] = self._requests.labels(route, str(status))
        counter.inc()

    def observe_batch(self, texts: int, seconds: Sequence[float], tokens: int, padding: int, full_scans: int) -> None:
        """Count one answered batch. `seconds` are those of ENGINE_STAGES."""
        self.batch_queries.observe(texts)
        if encoded := tokens + padding:
            self.batch_tokens.observe(tokens)
            self.padding.observe(padding / encoded)
        for histogram, duration in zip(self._engine_seconds, seconds, strict=True):
            histogram.observe(duration)
        if full_scans:
            self.full_scans.inc(full_scans)

    def set_serving(self, bundle: str, generation: int) -> None:
        """Set the generation that is served."""
        self.generation.clear()
        self.generation.labels(bundle, str(generation)).set(1)

    def add_generation(self, generation: ObservedGeneration) -> None:
        """Export the metrics of an open generation until it is removed."""
        self._generations.open.append(generation)

    def remove_generation(self, generation: ObservedGeneration) -> None:
        """Stop exporting the metrics of a generation."""
        if generation in self._generations.open:
            self._generations.open.remove(generation)

    def set_queue_functions(self, waiting: Callable[[], int], unfinished: Callable[[], int]) -> None:
        """Read the two queue lengths from functions when metrics are collected, not on every request."""
        self.waiting.set_function(waiting)
        self.unfinished.set_function(unfinished)


class GenerationCollector(Collector):
    """Metrics of open generations, read when metrics are collected."""

    def __init__(self) -> None:
        self.open: list[ObservedGeneration] = []

    def collect(self) -> Iterator[Metric]:
        labels = ["bundle", "generation"]
        in_flight = GaugeMetricFamily(
            "diptych_in_flight", "Requests admitted and not answered, by generation", labels=labels
        )
        memory = GaugeMetricFamily(
            "diptych_engine_resident_bytes",
            "Resident memory of a generation's engines in bytes; memory that they share counts once",
            labels=labels,
        )
        for generation in self.open:
            values = [generation.name, str(generation.number)]
            in_flight.add_metric(values, generation.unfinished)
            if size := shared_bytes(generation.engines):
                memory.add_metric(values, size)
        yield in_flight
        yield memory


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 when it has ended."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:") * 1024


def shared_bytes(pids: Sequence[int]) -> int:
    """Return the resident memory of processes in bytes; memory that they share counts once."""
    if len(pids) == 1:  # read faster
        return resident_bytes(pids[0])
    return sum(_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids) * 1024


def _kilobytes(path: Path, field: str) -> int:
    try:
        text = path.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    # a process that has just ended has no such line
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(field)), 0)
