"""Send OpenTelemetry traces, if OpenTelemetry's environment variables enable them.

Spans are created after a response, from the stage times that were measured anyway. A service without traces pays one
comparison per request. The SDK comes with the extra `otel` and is imported only when traces are enabled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from time import perf_counter, time_ns
from typing import Any

from retrieval.errors import BadInput
from service.observe.metrics import ENGINE_STAGES
from service.request_context import RequestContext

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SUPPORTED_PROTOCOL = "http/protobuf"
PROPAGATION_HEADERS = ("traceparent", "tracestate")


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Return whether OpenTelemetry's variables enable traces. Raises BadInput for another exporter or protocol."""
    exporter = environment.get(EXPORTER, "").strip()
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    if not exporter and not any(environment.get(name) for name in ENDPOINTS):
        return False
    if exporter not in ("", "otlp"):
        raise BadInput(f"{EXPORTER} is {exporter!r}; set it to 'otlp' to send traces, or to 'none'.")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), SUPPORTED_PROTOCOL)
    if protocol != SUPPORTED_PROTOCOL:
        raise BadInput(f"The OTLP protocol {protocol!r} is not supported; use {SUPPORTED_PROTOCOL!r}.")
    return True


class Tracing:
    """Convert finished requests to spans and send them from a background thread."""

    def __init__(self) -> None:
        """Set up the exporter. Raises BadInput when the SDK is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as missing:
            raise BadInput(
                "OpenTelemetry's variables enable traces, but its packages are not installed. "
                "Install them with: pip install 'diptych[otel]', or unset the variables."
            ) from missing
        resource = {SERVICE_VERSION: version("diptych")}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            resource[SERVICE_NAME] = "diptych"
        self._provider = TracerProvider(
            resource=Resource.create(resource), shutdown_on_exit=False
        )  # `close` shuts it down
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("diptych")
        self._extract = TraceContextTextMapPropagator().extract
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    @classmethod
    def from_environment(cls) -> Tracing | None:
        """Return None unless OpenTelemetry's variables enable traces. Raises BadInput."""
        return cls() if is_enabled(os.environ) else None

    def record(self, context: RequestContext) -> None:
        """Create the spans of a finished request: one for the request, and one per stage inside it."""
        from opentelemetry.trace import set_span_in_context

        offset = time_ns() - round(perf_counter() * 1e9)  # from perf_counter to the time of day
        carrier = {name: context.headers.get(name.encode(), b"").decode("latin-1") for name in PROPAGATION_HEADERS}
        span = self._tracer.start_span(
            f"{context.scope['method']} {context.route}",
            context=self._extract(carrier),
            kind=self._kind,
            start_time=offset + round(context.started * 1e9),
            attributes=_attributes(context),
        )
        if span.is_recording():
            parent = set_span_in_context(span)
            for name, begin, end in _stages(context):
                stage = self._tracer.start_span(name, context=parent, start_time=offset + round(begin * 1e9))
                stage.end(offset + round(end * 1e9))
        if context.failed:
            span.set_status(self._failed)
        span.end(offset + round(perf_counter() * 1e9))

    def close(self) -> None:
        """Send the remaining spans. Blocks at most for the exporter's time-out."""
        self._provider.shutdown()


def _attributes(context: RequestContext) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": context.scope["method"],
        "http.route": context.route,
        "http.response.status_code": context.status,
        "client.address": context.address,
        "diptych.request_id": context.id.decode(),
    }
    if context.error_code:
        attributes["error.type"] = context.error_code
    if context.pending:
        attributes |= {"diptych.bundle": context.pending.bundle, "diptych.texts": len(context.pending.texts)}
    return attributes


def _stages(context: RequestContext) -> Iterator[tuple[str, float, float]]:
    """Yield name, begin and end of each stage. The engine's stages follow each other from `begun`."""
    pending = context.pending
    if pending is None:
        return
    yield "queue", pending.arrived, pending.begun
    if pending.stages:
        moment = pending.begun
        for name, seconds in zip(ENGINE_STAGES, pending.stages, strict=False):
            yield name, moment, moment + seconds
            moment += seconds
