"""The composition root: makes the parts, gives each what it needs, and does nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
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
from service.errors import Refusal
from service.exchange import Exchanges, exchange_of
from service.generation import Generation
from service.generations import Generations
from service.methods import HeadAndOptions, allow
from service.metrics import Metrics
from service.predicting import PATH as PREDICT_PATH
from service.predicting import Predict
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


class Service(FastAPI):
    """FastAPI, and the one `busy` route that is answered before FastAPI's own layers."""

    busy: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PREDICT_PATH and scope["method"] == "POST":
            await self.busy(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings, opened: Callable[[Generation | DiptychError], None] | None = None) -> Service:
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

    app = Service(
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
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    predict = Predict(settings, generations, metrics)
    add_routes(app.router, settings, generations, metrics, predict)
    app.busy = predict
    app.add_middleware(HeadAndOptions, methods_of=partial(_methods, app))
    for layer, options in _layers(app, settings, metrics, tracing):
        app.add_middleware(layer, **options)
        app.busy = layer(app.busy, **options)
    return app


def _layers(
    app: FastAPI, settings: Settings, metrics: Metrics, tracing: Tracing | None
) -> Iterator[tuple[Callable[..., ASGIApp], dict[str, Any]]]:
    """What stands around every route, the outermost last."""
    yield BodyGuard, {"max_bytes": settings.max_body_bytes}
    if settings.origins:  # administration is not for pages of others, so its header is not allowed
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
    yield Exchanges, {"settings": settings, "metrics": metrics, "tracing": tracing, "routes": routes}


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
    headers = error.headers
    if error.status_code == 405:
        headers = {"Allow": allow(_methods(request.app, request.url.path))}
    return exchange_of(request.scope).refused(Refusal(error.status_code, code, sentence, headers))


def _methods(app: FastAPI, path: str) -> set[str]:
    """The methods of this path, of which each route names only its own; of all routes for the path *."""
    here = [route for route in app.routes if isinstance(route, Route) and path in (route.path, "*")]
    return {method for route in here for method in route.methods or ()}
