"""Give every request an id, a timing header, a metric, a log line and a trace, and answer unexpected exceptions.

One ASGI layer does all of it, because each layer costs every request about a microsecond.
"""

import logging
import re
import secrets
from collections.abc import Callable, Mapping
from itertools import count
from time import perf_counter
from typing import Any, cast

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.access import repeated_headers
from service.access.allowed_hosts import AllowedHosts
from service.access.client_address import UNKNOWN, ClientAddresses
from service.batching.batcher import Ticket
from service.errors import Refusal
from service.observe.logs import REQUEST_ID
from service.observe.metrics import Metrics
from service.observe.tracing import Tracing
from service.settings import Settings

LOG = logging.getLogger("diptych.request")
VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
LOGGED_FROM = {"all": 0, "failures": 500, "none": 1000}  # the least status that gets a line
SHOWN = 300  # of a path in a line
# also counted as rejections
GUARDED = frozenset(
    {
        "bad_host", "body_too_large", "compressed_body", "rate_limited", "repeated_header", "too_many_wrong_keys",
        "wrong_host", "wrong_key",
    }
)  # fmt: skip
BUSY = "/predict"  # a POST, which no cache keeps
NO_STORE = (b"cache-control", b"no-store")
PROCESS, NUMBERS = secrets.token_hex(6).encode(), count(1)
ADMIN_PATHS = "/admin/"
COMPARE = "/admin/compare"  # its body has user text, which is never audit-logged
NOT_READY = (503, "/readyz")  # the regular answer of a service that is not ready, not a failure
GONE = 499  # the client closed the connection before its answer


def new_id() -> bytes:
    """Return a unique request id: a random prefix of this process and a number."""
    return b"%b-%x" % (PROCESS, next(NUMBERS))


def given_or_new_id(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the client's request id if it is valid, else a new one."""
    given = headers.get(b"x-request-id", b"")
    return given if VALID_ID.fullmatch(given) else new_id()


class Exchange:
    """One request and the facts collected while it is answered."""

    __slots__ = (
        "_addresses", "act", "bundle", "headers", "id", "key_name", "refusal", "route", "scope", "started", "status",
        "ticket",
    )  # fmt: skip

    def __init__(self, scope: Scope, routes: frozenset[str], addresses: ClientAddresses) -> None:
        self._addresses = addresses
        self.started = perf_counter()
        self.scope = scope
        self.route = scope["path"] if scope["path"] in routes else "other"  # the unknown paths share a name
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = given_or_new_id(self.headers)
        self.ticket: Ticket | None = None
        self.bundle: str | None = None  # that answered it
        self.refusal: str | None = None
        self.status = 0  # none yet
        self.key_name: str | None = None  # name of the admin key
        self.act: dict[str, object] = {}  # what an administrator requested and what was done, for the audit log

    @property
    def failed(self) -> bool:
        """Whether the answer counts as a failure of the service."""
        is_expected = (self.status, self.route) == NOT_READY or self.refusal == errors.DEADLINE_EXCEEDED
        return self.status >= 500 and not is_expected

    @property
    def address(self) -> str:
        """The client's address: the peer's, or the one that a trusted proxy reports."""
        client = self.scope.get("client")
        return self._addresses.of(str(client[0]), self.scope["headers"]) if client else UNKNOWN

    def header(self, name: str) -> str | None:
        value = self.headers.get(name.lower().encode())
        return None if value is None else value.decode("latin-1")

    def refused(self, refusal: Refusal) -> Response:
        """The answer that a refusal is."""
        self.refusal = refusal.code
        return refusal.response()

    def left(self) -> None:
        """Abandon the pending request of a client that disconnected."""
        if self.ticket and not self.ticket.answer.done():
            self.ticket.abandon()

    def begin(self, status: int, metrics: Metrics) -> list[tuple[bytes, bytes]]:
        """The answer starts: count it, and give the headers that every answer has."""
        self.status = status
        metrics.answered(self.route, status)
        if self.refusal == errors.DEADLINE_EXCEEDED:
            metrics.client_deadlines.inc()
        total = perf_counter() - self.started
        ticket = self.ticket
        if ticket is None:
            headers = [(b"x-request-id", self.id), (b"server-timing", b"total;dur=%.3f" % (total * 1e3))]
            return [*headers, (b"x-bundle", self.bundle.encode())] if self.bundle else headers
        if status == 200:
            metrics.queue_seconds.observe(ticket.begun - ticket.arrived)
            metrics.total_seconds.observe(total)
        timing = _timing(ticket, total)
        return [(b"x-request-id", self.id), (b"server-timing", timing), (b"x-bundle", ticket.bundle.encode())]


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a handler's request is part of."""
    return cast(Exchange, scope["exchange"])


class Exchanges:
    """The ASGI layer outside all others; `routes` are the paths that figures and traces may name."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        tracing: Tracing | None,
        routes: frozenset[str],
        audit: Callable[[Exchange], None] | None = None,
    ) -> None:
        self._app = app
        self._routes = routes
        self._addresses = ClientAddresses(settings.trusted_proxies)
        self._metrics = metrics
        self._tracing = tracing
        self._logged_from = LOGGED_FROM[settings.log_requests]
        self._log_queries = settings.log_queries
        self._hosts = AllowedHosts(settings.hosts)
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["exchange"] = exchange = Exchange(scope, self._routes, self._addresses)
        REQUEST_ID.set(exchange.id.decode())

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                if exchange.route != BUSY and not any(name == NO_STORE[0] for name, _ in headers):
                    headers.append(NO_STORE)
                headers.extend(exchange.begin(message["status"], self._metrics))
            await send(message)

        try:
            await self._answer(exchange, receive, sending)
        finally:
            del scope["exchange"]  # break the reference cycle
            if exchange.refusal in GUARDED:
                self._metrics.rejections.labels(exchange.refusal).inc()
            if self._audit and scope["path"].startswith(ADMIN_PATHS):
                self._audit(exchange)
            if exchange.status >= self._logged_from and (not self._logged_from or exchange.failed):
                self._log(exchange)
            if self._tracing:
                self._tracing.record(exchange)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        try:
            if refusal := self._head_refusal(exchange):
                await exchange.refused(refusal)(exchange.scope, receive, send)
            else:
                await self._app(exchange.scope, receive, send)
        except ClientDisconnect:
            exchange.status = GONE
            self._metrics.answered(exchange.route, GONE)
        except Exception:
            if exchange.status:  # part of an answer has gone out: only the connection's end can tell the client
                raise
            LOG.exception("%s %s failed", exchange.scope["method"], exchange.route)
            await exchange.refused(errors.broken())(exchange.scope, receive, send)

    def _head_refusal(self, exchange: Exchange) -> Refusal | None:
        """Return the refusal of a request because of its head, else None."""
        headers, scope = exchange.headers, exchange.scope
        if len(headers) < len(scope["headers"]) and (refusal := repeated_headers.refusal(scope["headers"])):
            return refusal
        return self._hosts.refusal(scope["path"], exchange.header("Host")) if self._hosts else None

    def _log(self, exchange: Exchange) -> None:
        scope, ticket = exchange.scope, exchange.ticket
        about: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["path"][:SHOWN],
            "status": exchange.status,
            "milliseconds": round((perf_counter() - exchange.started) * 1e3, 3),
            "address": exchange.address,
        }
        if exchange.refusal:
            about["refusal"] = exchange.refusal
        if ticket:
            about |= {"bundle": ticket.bundle, "texts": len(ticket.asked.texts)}
            if self._log_queries:
                about["queries"] = list(ticket.asked.texts)
        LOG.log(logging.WARNING if exchange.status >= 500 else logging.INFO, "request", extra=about)


def _timing(ticket: Ticket, total: float) -> bytes:
    """The Server-Timing of an answer from a bundle, in milliseconds; the engine's stages are its last batch's."""
    tokenize, encode, search, serialize = ticket.stages[:4] if ticket.stages else (0.0, 0.0, 0.0, 0.0)
    return (
        f"queue;dur={(ticket.begun - ticket.arrived) * 1e3:.3f}, tokenize;dur={tokenize * 1e3:.3f}, "
        f"encode;dur={encode * 1e3:.3f}, search;dur={search * 1e3:.3f}, serialize;dur={serialize * 1e3:.3f}, "
        f"total;dur={total * 1e3:.3f}"
    ).encode()
