"""The composition root: makes the parts, gives each what it needs, and does nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from retrieval.errors import BundleError, DiptychError
from service import errors
from service.errors import Refusal
from service.generation import Generation
from service.generations import Generations
from service.metrics import Count, Metrics
from service.routes import add_routes
from service.security import BodyLimit
from service.settings import Settings

LOG = logging.getLogger("diptych")
CODES = {404: "not_found", 405: "wrong_method"}
SENTENCES = {
    404: "There is nothing at this path; POST /predict answers queries and /openapi.json describes the rest.",
    405: "This path does not take this method; /openapi.json says which it takes.",
}


def create_app(settings: Settings, opened: Callable[[Generation | DiptychError], None] | None = None) -> FastAPI:
    """The service as an ASGI application. It answers at once and is ready when its bundle is; `opened` then hears of
    the first generation, or of the error why there is none."""
    metrics = Metrics(CollectorRegistry())
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

    app = FastAPI(
        title="Diptych",
        version=version("diptych"),
        summary="Short queries to the few best of millions of short texts",
        lifespan=lifespan,
        docs_url=None,  # both pages would load their scripts from somebody else's server
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.generations = generations
    add_routes(app.router, settings, generations, metrics)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _unexpected)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Count, metrics=metrics)
    return app


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


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "refused")
    return Refusal(error.status_code, code, SENTENCES.get(error.status_code, error.detail), error.headers).response()


async def _unexpected(_: Request, __: Exception) -> Response:
    return errors.broken().response()
