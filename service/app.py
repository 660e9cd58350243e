"""Compose the service: create its parts and connect them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from retrieval.errors import BundleError, DiptychError
from service.access.key_guessing import GuessLimit
from service.access.key_headers import PREDICT_HEADER, BodyGuard
from service.access.keys import AdminKeys
from service.bundles.generation import Generation
from service.bundles.manager import BundleManager
from service.errors import Refusal
from service.http import audit
from service.http.methods import HeadAndOptions, allow
from service.http.middleware import Exchanges, exchange_of
from service.http.predict import PATH as PREDICT_PATH
from service.http.predict import Predict
from service.http.routes import add_routes
from service.observe.detached_thread import aside
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor, described
from service.observe.tracing import Tracing
from service.settings import Settings

LOG = logging.getLogger("diptych")
# FastAPI's own telemetry: checking whether it is on costs 7 µs per request
OFF: Any = {"tracing": False, "metrics": False, "logs": False}
TRACE_SECONDS = 3.0  # that the service waits for a trace collector at its end
CODES = {404: "not_found", 405: "wrong_method"}
SENTENCES = {
    404: "There is nothing at this path; POST /predict answers queries and /openapi.json describes the rest.",
    405: "This path does not take this method; /openapi.json says which it takes.",
}


class Service(FastAPI):
    """A FastAPI application whose `busy` route bypasses FastAPI's layers."""

    busy: ASGIApp
    busy_route: Predict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PREDICT_PATH and scope["method"] == "POST":
            await self.busy(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings, opened: Callable[[Generation | DiptychError], None] | None = None) -> Service:
    """Create the service as an ASGI application, which answers before its bundle is open.

    `opened` is called once with the first generation or the error. Raises BadInput when tracing is configured and
    cannot start.
    """
    metrics = Metrics(CollectorRegistry())
    tracing = Tracing.from_environment()
    supervisor = Supervisor(metrics)
    generations = BundleManager(settings, metrics, supervisor)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        supervisor.watch_loop()
        opening = supervisor.run("opening", _open(generations, supervisor, opened))
        yield
        generations.stop()
        opening.cancel()
        await asyncio.wait([opening])
        await generations.close()
        if tracing:
            await _send_last_traces(tracing, supervisor)
        await supervisor.close()

    app = Service(
        title="Diptych",
        version=version("diptych"),
        summary="Short queries to the few best of millions of short texts",
        lifespan=lifespan,
        docs_url=None,  # both pages would load scripts from another server
        redoc_url=None,
        redirect_slashes=False,
        telemetry=OFF,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.generations = generations
    app.state.metrics = metrics
    app.state.supervisor = supervisor
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    guesses = GuessLimit()  # shared by both kinds of keys
    predict = Predict(settings, generations, metrics, guesses)
    admin = AdminKeys(settings.administrators, guesses, metrics)
    add_routes(app.router, settings, generations, metrics, predict, admin)
    app.busy = app.busy_route = predict
    app.add_middleware(HeadAndOptions, methods_of=partial(_methods, app))
    for layer, options in _layers(app, settings, metrics, tracing):
        app.add_middleware(layer, **options)
        app.busy = layer(app.busy, **options)
    return app


def _layers(
    app: FastAPI, settings: Settings, metrics: Metrics, tracing: Tracing | None
) -> Iterator[tuple[Callable[..., ASGIApp], dict[str, Any]]]:
    """Yield the middleware of every route, the outermost last."""
    yield BodyGuard, {"max_bytes": settings.max_body_bytes}
    if settings.origins:  # the admin header is not listed: other sites must not administer
        yield (
            CORSMiddleware,
            {
                "allow_origins": settings.origins,
                "allow_methods": ["GET", "POST"],
                "allow_headers": ["Content-Type", PREDICT_HEADER, "X-Request-ID"],
                "expose_headers": ["X-Bundle", "X-Request-ID", "Server-Timing", "Retry-After"],
            },
        )
    routes = frozenset(route.path for route in app.routes if isinstance(route, Route))
    options = {"settings": settings, "metrics": metrics, "tracing": tracing, "routes": routes, "audit": audit.record}
    yield Exchanges, options


async def _open(
    generations: BundleManager, supervisor: Supervisor, opened: Callable[[Generation | DiptychError], None] | None
) -> None:
    """Open the active bundle and report the generation or the error, whatever its type."""
    try:
        outcome: Generation | DiptychError = await generations.open_active()
    except DiptychError as error:
        outcome = error
    except OSError as error:
        outcome = BundleError(f"the store cannot be read ({error})")
    except Exception as error:  # noqa: BLE001  # every error is reported
        if generations.stopping:
            return
        supervisor.failed("opening", error)
        outcome = BundleError(f"the active bundle cannot be opened: unexpected {described(error)}. Please report it.")
    if generations.stopping and isinstance(outcome, DiptychError):
        return
    if opened:
        opened(outcome)
    elif isinstance(outcome, DiptychError):
        LOG.error("%s", outcome)


async def _send_last_traces(tracing: Tracing, supervisor: Supervisor) -> None:
    """Send the last traces, for a few seconds at most: the collector may not respond."""
    sending = supervisor.run("trace_export", aside(tracing.close))
    done, _ = await asyncio.wait([sending], timeout=TRACE_SECONDS)
    if not done:
        LOG.warning("the last traces were not sent: the collector has not answered for %g s", TRACE_SECONDS)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return exchange_of(request.scope).refused(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "refused")
    sentence = SENTENCES.get(error.status_code, error.detail)
    headers = error.headers
    if error.status_code == 405:
        headers = {"Allow": allow(_methods(request.app, request.url.path))}
    return exchange_of(request.scope).refused(Refusal(error.status_code, code, sentence, headers))


def _methods(app: FastAPI, path: str) -> set[str]:
    """Return the methods of all routes with this path; of all routes for the path *."""
    here = [route for route in app.routes if isinstance(route, Route) and path in (route.path, "*")]
    return {method for route in here for method in route.methods or ()}
