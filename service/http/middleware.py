"""Give every request an id, a timing header, a metric, a log line and a trace, and answer unexpected exceptions.

One ASGI middleware does all of it, because each one costs every request about a microsecond.
"""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.access import repeated_headers
from service.access.allowed_hosts import AllowedHosts
from service.access.client_address import ClientAddresses
from service.errors import Refusal
from service.http import paths
from service.observe.logs import REQUEST_ID
from service.observe.metrics import Metrics
from service.observe.tracing import Tracing
from service.request_context import PendingAnswer, RequestContext
from service.settings import Settings

LOG = logging.getLogger("diptych.request")
MIN_LOGGED_STATUS = {"all": 0, "failures": 500, "none": 1000}
SHOWN_CHARS = 300  # of a path in a log line
# error codes that are also counted as rejections
REJECTIONS = frozenset(
    {
        "bad_host", "body_too_large", "compressed_body", "rate_limited", "repeated_header", "too_many_wrong_keys",
        "wrong_host", "wrong_key",
    }
)  # fmt: skip
OTHER = "other"  # the route of all unknown paths
NO_STORE = (b"cache-control", b"no-store")  # not for /predict: no cache stores the answer of a POST
CLIENT_DISCONNECTED = 499


class RequestMiddleware:
    """The outermost ASGI middleware. `routes` are the paths that metrics and traces may name."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        tracing: Tracing | None,
        routes: frozenset[str],
        audit: Callable[[RequestContext], None] | None = None,
    ) -> None:
        self._app = app
        self._routes = routes
        self._addresses = ClientAddresses(settings.trusted_proxies)
        self._metrics = metrics
        self._tracing = tracing
        self._min_logged = MIN_LOGGED_STATUS[settings.log_requests]
        self._log_queries = settings.log_queries
        self._hosts = AllowedHosts(settings.hosts)
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        context = RequestContext(scope, path if path in self._routes else OTHER, self._addresses.of)
        scope["request_context"] = context
        REQUEST_ID.set(context.id.decode())

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                if context.route != paths.PREDICT and not any(name == NO_STORE[0] for name, _ in headers):
                    headers.append(NO_STORE)
                headers.extend(self._start_response(context, message["status"]))
            await send(message)

        try:
            await self._respond(context, receive, send_with_headers)
        finally:
            del scope["request_context"]  # break the reference cycle
            if context.error_code in REJECTIONS:
                self._metrics.rejections.labels(context.error_code).inc()
            if self._audit and path.startswith(paths.ADMIN):
                self._audit(context)
            if context.status >= self._min_logged and (not self._min_logged or context.failed):
                self._log(context)
            if self._tracing:
                self._tracing.record(context)

    async def _respond(self, context: RequestContext, receive: Receive, send: Send) -> None:
        try:
            if refusal := self._check_headers(context):
                await context.error_response(refusal)(context.scope, receive, send)
            else:
                await self._app(context.scope, receive, send)
        except ClientDisconnect:
            context.status = CLIENT_DISCONNECTED
            self._metrics.count_response(context.route, CLIENT_DISCONNECTED)
        except Exception:
            if context.status:  # part of the response was sent: only closing the connection can tell the client
                raise
            LOG.exception("%s %s failed", context.scope["method"], context.route)
            await context.error_response(errors.broken())(context.scope, receive, send)

    def _check_headers(self, context: RequestContext) -> Refusal | None:
        """Return the refusal of a request because of its headers, else None."""
        headers, scope = context.headers, context.scope
        if len(headers) < len(scope["headers"]) and (refusal := repeated_headers.refusal(scope["headers"])):
            return refusal
        return self._hosts.refusal(scope["path"], context.header("Host")) if self._hosts else None

    def _start_response(self, context: RequestContext, status: int) -> list[tuple[bytes, bytes]]:
        """Count a response that starts; return the headers that every response has."""
        context.status = status
        metrics, pending = self._metrics, context.pending
        metrics.count_response(context.route, status)
        if context.error_code == errors.DEADLINE_EXCEEDED:
            metrics.client_deadlines.inc()
        total = perf_counter() - context.started
        if pending is None:
            headers = [(b"x-request-id", context.id), (b"server-timing", b"total;dur=%.3f" % (total * 1e3))]
            return [*headers, (b"x-bundle", context.bundle.encode())] if context.bundle else headers
        if status == 200:
            metrics.queue_seconds.observe(pending.begun - pending.arrived)
            metrics.total_seconds.observe(total)
        timing = _server_timing(pending, total)
        return [(b"x-request-id", context.id), (b"server-timing", timing), (b"x-bundle", pending.bundle.encode())]

    def _log(self, context: RequestContext) -> None:
        scope, pending = context.scope, context.pending
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["path"][:SHOWN_CHARS],
            "status": context.status,
            "milliseconds": round((perf_counter() - context.started) * 1e3, 3),
            "address": context.address,
        }
        if context.error_code:
            fields["error_code"] = context.error_code
        if pending:
            fields |= {"bundle": pending.bundle, "texts": len(pending.texts)}
            if self._log_queries:
                fields["queries"] = list(pending.texts)
        LOG.log(logging.WARNING if context.status >= 500 else logging.INFO, "request", extra=fields)


def _server_timing(pending: PendingAnswer, total: float) -> bytes:
    """Return the Server-Timing header of an answer, in milliseconds. The engine's stages are of its last batch."""
    tokenize, encode, search, serialize = pending.stages[:4] if pending.stages else (0.0, 0.0, 0.0, 0.0)
    return (
        f"queue;dur={(pending.begun - pending.arrived) * 1e3:.3f}, tokenize;dur={tokenize * 1e3:.3f}, "
        f"encode;dur={encode * 1e3:.3f}, search;dur={search * 1e3:.3f}, serialize;dur={serialize * 1e3:.3f}, "
        f"total;dur={total * 1e3:.3f}"
    ).encode()
