"""The composition root: makes the parts, gives each what it needs, and does nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from retrieval.errors import BundleError, DiptychError
from service.errors import Refusal
from service.exchange import Exchanges, exchange_of
from service.generation import Generation
from service.generations import Generations
from service.metrics import Metrics
from service.routes import add_routes
from service.security import PREDICT_HEADER, BodyGuard
from service.settings import Settings
from service.tracing import Tracing

LOG = logging.getLogger("diptych")
OFF: Any = {"tracing": False, "metrics": False, "logs": False}  # FastAPI's own; asking if it is on costs 7 µs a request
CODES = {404: "not_found", 405: "wrong_method"}
SENTENCES = {
    404: "There is nothing at this path; POST /predict answers queries and /openapi.json describes the rest.",
    405: "This path does not take this method; /openapi.json says which it takes.",
}


def create_app(settings: Settings, opened: Callable[[Generation | DiptychError], None] | None = None) -> FastAPI:
    """The service as an ASGI application. It answers at once and is ready when its bundle is; `opened` then hears of
    the first generation, or of the error why there is none. Raises BadInput when traces are asked for in vain."""
    metrics = Metrics(CollectorRegistry())
    tracing = Tracing.from_environment()
    generations = Generations(settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(_open(generations, opened))
        yield
        generations.stop()
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
        await generations.close()
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="Diptych",
        version=version("diptych"),
        summary="Short queries to the few best of millions of short texts",
        lifespan=lifespan,
        docs_url=None,  # both pages would load their scripts from somebody else's server
        redoc_url=None,
        redirect_slashes=False,
        telemetry=OFF,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.generations = generations
    app.state.metrics = metrics
    add_routes(app.router, settings, generations, metrics)
    _add_layers(app, settings, metrics, tracing)
    return app


def _add_layers(app: FastAPI, settings: Settings, metrics: Metrics, tracing: Tracing | None) -> None:
    """What stands around the routes; the layer that is added last is the outermost."""
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(BodyGuard, max_bytes=settings.max_body_bytes)
    if settings.origins:
        _open_to(app, settings.origins)
    routes = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(Exchanges, settings=settings, metrics=metrics, tracing=tracing, routes=routes)


def _open_to(app: FastAPI, origins: list[str]) -> None:
    """Let pages of these origins ask; administration is not for pages of others, so its header is not allowed."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Content-Type", PREDICT_HEADER, "X-Request-ID"],
        expose_headers=["X-Bundle", "X-Request-ID", "Server-Timing", "Retry-After"],
    )


async def _open(generations: Generations, opened: Callable[[Generation | DiptychError], None] | None) -> None:
    try:
        outcome: Generation | DiptychError = await generations.open_active()
    except DiptychError as error:
        outcome = error
    except OSError as error:
        outcome = BundleError(f"the store cannot be read ({error})")
    if opened:
        opened(outcome)
    elif isinstance(outcome, DiptychError):
        LOG.error("%s", outcome)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return exchange_of(request.scope).refused(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "refused")
    sentence = SENTENCES.get(error.status_code, error.detail)
    headers = _allowed(request) if error.status_code == 405 else error.headers
    return exchange_of(request.scope).refused(Refusal(error.status_code, code, sentence, headers))


def _allowed(request: Request) -> dict[str, str]:
    """The methods of this path, of which each route names only its own."""
    here = [route for route in request.app.routes if isinstance(route, Route) and route.path == request.url.path]
    return {"Allow": ", ".join(sorted({method for route in here for method in route.methods or ()}))}
