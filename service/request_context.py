"""Facts about one request, collected while it is answered: for headers, metrics, logs, audit and traces."""

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from time import perf_counter
from typing import Protocol, cast

from starlette.responses import Response
from starlette.types import Scope

from service import errors
from service.errors import Refusal

VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
PROCESS_ID, NUMBERS = secrets.token_hex(6).encode(), count(1)
NOT_READY = (503, "/readyz")  # the regular answer of a service that is not ready, not a failure
UNKNOWN_ADDRESS = "unknown"

AddressResolver = Callable[[str, Iterable[tuple[bytes, bytes]]], str]  # address of the peer, headers → the client's


class PendingAnswer(Protocol):
    """A queued request as headers, logs and traces read it. Times are of `perf_counter`."""

    @property
    def bundle(self) -> str:
        """Name of the bundle that answers it."""

    @property
    def texts(self) -> Sequence[str]:
        """Its query texts."""

    @property
    def arrived(self) -> float:
        """Time of its admission."""

    @property
    def begun(self) -> float:
        """Time when the engine began with its last batch."""

    @property
    def stages(self) -> Sequence[float] | None:
        """Seconds in each stage of its last batch, in the order of ENGINE_STAGES; None before it is answered."""

    def abandon(self) -> None:
        """Drop it: its client has disconnected."""


class RequestContext:
    """One request and the facts collected while it is answered."""

    __slots__ = (
        "_resolve_address", "audit_details", "bundle", "error_code", "headers", "id", "key_name", "pending", "route",
        "scope", "started", "status",
    )  # fmt: skip

    def __init__(self, scope: Scope, route: str, resolve_address: AddressResolver) -> None:
        self._resolve_address = resolve_address
        self.started = perf_counter()
        self.scope = scope
        self.route = route  # for metrics and traces
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = request_id(self.headers)
        self.pending: PendingAnswer | None = None
        self.bundle: str | None = None  # that answered it
        self.error_code: str | None = None
        self.status = 0  # 0 before the response starts
        self.key_name: str | None = None  # name of the admin key
        self.audit_details: dict[str, object] = {}  # the administrator's request and its result, for the audit log

    @property
    def failed(self) -> bool:
        """Whether the response counts as a failure of the service."""
        is_expected = (self.status, self.route) == NOT_READY or self.error_code == errors.DEADLINE_EXCEEDED
        return self.status >= 500 and not is_expected

    @property
    def address(self) -> str:
        """The client's address: the peer's, or the one that a trusted proxy reports."""
        client = self.scope.get("client")
        return self._resolve_address(str(client[0]), self.scope["headers"]) if client else UNKNOWN_ADDRESS

    def header(self, name: str) -> str | None:
        """Return the value of a header; None without it."""
        value = self.headers.get(name.lower().encode())
        return None if value is None else value.decode("latin-1")

    def error_response(self, refusal: Refusal) -> Response:
        """Note the error code and return the response."""
        self.error_code = refusal.code
        return refusal.response()

    def abandon(self) -> None:
        """Drop the pending request of a client that has disconnected."""
        if self.pending:
            self.pending.abandon()


def request_context(scope: Scope) -> RequestContext:
    """Return the context that RequestMiddleware stored in an ASGI scope."""
    return cast(RequestContext, scope["request_context"])


def new_request_id() -> bytes:
    """Return a unique request id: a random prefix of this process and a number."""
    return b"%b-%x" % (PROCESS_ID, next(NUMBERS))


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the client's request id if it is valid, else a new one."""
    from_client = headers.get(b"x-request-id", b"")
    return from_client if VALID_ID.fullmatch(from_client) else new_request_id()
