"""Every metric and every bucket; the registry is passed in, so two services in one process do not share figures."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.frames import Stages

SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LOAD_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
BATCH_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCH_TOKENS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
ENGINE_STAGES = ("tokenize", "encode", "search", "serialize")
ROUTES = frozenset({"/", "/predict", "/livez", "/readyz", "/metrics", "/openapi.json", "/admin/activate"})


class Metrics:
    """The service's own figures. Stages of the engine are counted once a batch, `queue` and `total` once a request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        self.requests = Counter("diptych_requests", "Answers by route and status", ["route", "code"], registry=registry)
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
        self.generation = Gauge(
            "diptych_generation_info", "1 for the bundle that is served", ["bundle", "generation"], registry=registry
        )
        self.switches = Counter("diptych_switches", "Changes of bundle by result", ["result"], registry=registry)
        self.switch_seconds = Histogram(
            "diptych_switch_seconds", "Seconds a change of bundle took", buckets=LOAD_SECONDS, registry=registry
        )
        self.restarts = Counter("diptych_engine_restarts", "Engines that died and were replaced", registry=registry)

    def batch(self, queries: int, stages: Stages) -> None:
        """Count one answered batch."""
        self.batch_queries.observe(queries)
        if encoded := stages.tokens + stages.padding:
            self.batch_tokens.observe(stages.tokens)
            self.padding.observe(stages.padding / encoded)
        for histogram, seconds in zip(self._engine_seconds, stages, strict=False):
            histogram.observe(seconds)

    def serving(self, bundle: str, generation: int) -> None:
        """From now on this generation takes the requests."""
        self.generation.clear()
        self.generation.labels(bundle, str(generation)).set(1)

    def watch(self, waiting: Callable[[], int], unfinished: Callable[[], int]) -> None:
        """Read the two depths when somebody asks for them, not on every request."""
        self.waiting.set_function(waiting)
        self.unfinished.set_function(unfinished)


class Count:
    """ASGI middleware that counts every answer by route and status; the unknown paths share one name."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in ROUTES else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
