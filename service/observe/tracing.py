"""OpenTelemetry traces, where its own environment variables ask for them; spans are made from the times at hand.

Nothing is measured twice: when an answer has gone out, its stage times become spans, so a service without traces pays
one comparison a request. The SDK comes with the extra `otel` and is imported only when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from retrieval.errors import BadInput

if TYPE_CHECKING:
    from service.http.middleware import Exchange

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CHOICE = "OTEL_TRACES_EXPORTER"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
OURS = "http/protobuf"


def wanted(environment: dict[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces. Raises BadInput when they ask for what is not there."""
    choice = environment.get(CHOICE, "").strip()
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or choice == "none":
        return False
    if not choice and not any(environment.get(name) for name in ENDPOINTS):
        return False
    if choice not in ("", "otlp"):
        raise BadInput(f"{CHOICE} is {choice!r}; this service sends traces with 'otlp' only, or none with 'none'.")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), OURS)
    if protocol != OURS:
        raise BadInput(f"the OTLP protocol {protocol!r} is not there; this service speaks {OURS!r} only.")
    return True


class Tracing:
    """Turns finished exchanges into spans and sends them from a thread of its own."""

    def __init__(self) -> None:
        """Raises BadInput when the SDK is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as missing:
            raise BadInput(
                "OpenTelemetry's variables ask for traces, and its packages are missing. "
                "Install them with: pip install 'diptych[otel]', or unset the variables."
            ) from missing
        about = {SERVICE_VERSION: version("diptych")}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            about[SERVICE_NAME] = "diptych"
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)  # `close` does that
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("diptych")
        self._extract = TraceContextTextMapPropagator().extract
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    @classmethod
    def from_environment(cls) -> Tracing | None:
        """None unless OpenTelemetry's own variables ask for traces. Raises BadInput."""
        return cls() if wanted(dict(os.environ)) else None

    def record(self, exchange: Exchange) -> None:
        """The spans of one exchange that has just ended: the request, and inside it the stages of its answer."""
        from opentelemetry.trace import set_span_in_context

        offset = time_ns() - round(perf_counter() * 1e9)  # from the stages' clock to the world's
        parent = self._extract({name: exchange.headers.get(name.encode(), b"").decode("latin-1") for name in CONTEXT})
        method = exchange.scope["method"]
        span = self._tracer.start_span(
            f"{method} {exchange.route}",
            context=parent,
            kind=self._kind,
            start_time=offset + round(exchange.started * 1e9),
            attributes=_attributes(exchange),
        )
        if span.is_recording():
            inside = set_span_in_context(span)
            for name, begin, end in _stages(exchange):
                stage = self._tracer.start_span(name, context=inside, start_time=offset + round(begin * 1e9))
                stage.end(offset + round(end * 1e9))
        if exchange.failed:
            span.set_status(self._failed)
        span.end(offset + round(perf_counter() * 1e9))

    def close(self) -> None:
        """Send what is left; blocks for as long as the exporter's own time-out at most."""
        self._provider.shutdown()


CONTEXT = ("traceparent", "tracestate")


def _attributes(exchange: Exchange) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": exchange.scope["method"],
        "http.route": exchange.route,
        "http.response.status_code": exchange.status,
        "client.address": exchange.address,
        "diptych.request_id": exchange.id.decode(),
    }
    if exchange.refusal:
        found["error.type"] = exchange.refusal
    if exchange.ticket:
        found |= {"diptych.bundle": exchange.ticket.bundle, "diptych.texts": len(exchange.ticket.asked.texts)}
    return found


def _stages(exchange: Exchange) -> Iterator[tuple[str, float, float]]:
    """Each stage with begin and end. The engine says how long its stages took; they follow each other from `begun`."""
    ticket = exchange.ticket
    if ticket is None:
        return
    yield "queue", ticket.arrived, ticket.begun
    if ticket.stages:
        moment = ticket.begun
        for name, seconds in zip(("tokenize", "encode", "search", "serialize"), ticket.stages, strict=False):
            yield name, moment, moment + seconds
            moment += seconds
