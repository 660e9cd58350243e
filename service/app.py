"""Compose the service: create its parts and connect them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from retrieval.errors import BundleError, DiptychError
from service.access.key_guessing import GuessLimit
from service.access.key_headers import PREDICT_HEADER
from service.access.keys import AdminKeys
from service.bundles.generation import Generation
from service.bundles.manager import BundleManager
from service.http import audit
from service.http.body_guard import BodyGuard
from service.http.dispatcher import Dispatcher
from service.http.middleware import RequestMiddleware
from service.http.predict import Predict
from service.http.routes import add_routes
from service.observe.detached_thread import run_detached
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor, describe_error
from service.observe.tracing import Tracing
from service.settings import Settings

LOG = logging.getLogger("diptych")
# FastAPI's own telemetry: checking whether it is on costs 7 µs per request
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}
TRACE_SECONDS = 3.0  # that the service waits for a trace collector when it stops

OnOpened = Callable[[Generation | DiptychError], None]


@dataclass(frozen=True)
class Service:
    """The service as an ASGI application, and its parts."""

    asgi: ASGIApp
    fastapi: FastAPI  # the routes and their OpenAPI document
    predict: Predict
    manager: BundleManager
    metrics: Metrics
    supervisor: Supervisor


def create_service(settings: Settings, on_opened: OnOpened | None = None) -> Service:
    """Create the service, which answers before its bundle is open.

    `on_opened` is called once with the first generation or the error. Raises BadInput when tracing is configured and
    cannot start.
    """
    metrics = Metrics(CollectorRegistry())
    tracing = Tracing.from_environment()
    supervisor = Supervisor(metrics)
    manager = BundleManager(settings, metrics, supervisor)
    guesses = GuessLimit()  # shared by both kinds of keys
    predict = Predict(settings, manager, metrics, guesses)
    admin = AdminKeys(settings.administrators, guesses, metrics)
    fastapi = _create_fastapi(_lifespan(manager, supervisor, tracing, on_opened))
    add_routes(fastapi.router, settings, manager, metrics, predict, admin)
    routes = frozenset(route.path for route in fastapi.routes if isinstance(route, Route))
    asgi = _add_cors(BodyGuard(Dispatcher(predict, fastapi), settings.max_body_bytes), settings.origins)
    asgi = RequestMiddleware(asgi, settings, metrics, tracing, routes, audit.record)
    return Service(asgi, fastapi, predict, manager, metrics, supervisor)


def _create_fastapi(lifespan: Callable[[FastAPI], Any]) -> FastAPI:
    return FastAPI(
        title="Diptych",
        version=version("diptych"),
        summary="Short queries to the few best of millions of short texts",
        lifespan=lifespan,
        docs_url=None,  # both pages would load scripts from another server
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        generate_unique_id_function=lambda route: route.name,
    )


def _add_cors(app: ASGIApp, origins: list[str]) -> ASGIApp:
    """Wrap an application in CORS middleware if there are allowed origins."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        # without the admin header: other sites must not administer
        allow_headers=["Content-Type", PREDICT_HEADER, "X-Request-ID"],
        expose_headers=["X-Bundle", "X-Request-ID", "Server-Timing", "Retry-After"],
    )


def _lifespan(
    manager: BundleManager, supervisor: Supervisor, tracing: Tracing | None, on_opened: OnOpened | None
) -> Callable[[FastAPI], Any]:
    """Return the context manager that opens the active bundle and, at the end, finishes the admitted requests."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        supervisor.watch_loop()
        opening = supervisor.run("opening", _open(manager, supervisor, on_opened))
        yield
        manager.stop()
        opening.cancel()
        await asyncio.wait([opening])
        await manager.close()
        if tracing:
            await _send_last_traces(tracing, supervisor)
        await supervisor.close()

    return lifespan


async def _open(manager: BundleManager, supervisor: Supervisor, on_opened: OnOpened | None) -> None:
    """Open the active bundle and report the generation or the error of any type."""
    try:
        outcome: Generation | DiptychError = await manager.open_active()
    except DiptychError as error:
        outcome = error
    except OSError as error:
        outcome = BundleError(f"the store cannot be read ({error})")
    except Exception as error:  # noqa: BLE001  # every error is reported
        if manager.stopping:
            return
        supervisor.failed("opening", error)
        outcome = BundleError(
            f"the active bundle cannot be opened: unexpected {describe_error(error)}. Please report it."
        )
    if manager.stopping and isinstance(outcome, DiptychError):
        return
    if on_opened:
        on_opened(outcome)
    elif isinstance(outcome, DiptychError):
        LOG.error("%s", outcome)


async def _send_last_traces(tracing: Tracing, supervisor: Supervisor) -> None:
    """Send the last traces, for a few seconds at most: the collector may not respond."""
    sending = supervisor.run("trace_export", run_detached(tracing.close))
    done, _ = await asyncio.wait([sending], timeout=TRACE_SECONDS)
    if not done:
        LOG.warning("the last traces were not sent: the collector has not answered for %g s", TRACE_SECONDS)
