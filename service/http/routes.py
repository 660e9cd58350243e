"""The routes: OpenAPI description of each, and handlers that check, parse and delegate."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from service.access.key_headers import ADMIN_HEADER, PREDICT_HEADER
from service.access.keys import AdminKeys
from service.bundles.manager import BundleManager
from service.console import add_front_page
from service.http import audit, deadlines, paths
from service.http.admin_schemas import (
    ActivateRequest,
    ActivateResponse,
    BundlesResponse,
    PausedResponse,
    compare_request,
    paused_request,
)
from service.http.listing import about, list_bundles
from service.http.predict import Predict, response_body
from service.http.schemas import About, ErrorResponse, PredictResponse, Readiness, parse
from service.observe.metrics import Metrics
from service.request_context import request_context
from service.settings import Settings

REFUSALS = {
    400: "The body is not JSON, or a header that must be unique was repeated.",
    401: "The key is missing or wrong.",
    403: "Administration, or opening bundles for comparison, is off.",
    404: "There is no such bundle.",
    408: "The request did not arrive in time.",
    409: "This bundle is already being prepared, another one was requested later, or the service is stopping.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "A field is missing, unknown or invalid; the answer is too large; or the query is in quarantine.",
    429: "The queue is full, the caller is over its rate limit, or its address sent too many wrong keys; "
    "try again after Retry-After seconds.",
    431: "The request's head or trailers are too large, or have too many headers.",
    500: "The service failed on this request.",
    503: "The service is loading a bundle, replacing an engine, stopping, or has no memory for the request.",
    504: "No answer was ready before the deadline: the service's (`too_late`) or X-Deadline-Ms (`deadline_exceeded`).",
}


class DirectRoute(APIRoute):
    """A route that FastAPI only documents: its handler takes the request and returns the response.

    Solving dependencies that a handler does not have costs as much as the rest of FastAPI.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def add_routes(
    router: APIRouter,
    settings: Settings,
    manager: BundleManager,
    metrics: Metrics,
    predict: Predict,
    admin: AdminKeys,
) -> None:
    """Add all routes."""
    router.route_class = DirectRoute
    _add_predict(router, predict)
    add_front_page(router, settings.console)
    _add_about(router, settings, manager, predict)
    _add_probes(router, manager, metrics)
    _add_switching(router, manager, admin)
    _add_listing(router, manager, admin)
    _add_comparing(router, manager, predict, admin)
    _add_pausing(router, settings, manager, admin)


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": REFUSALS[status]} for status in statuses}


def _body(model: type[Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that the handler parses, which FastAPI cannot infer."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def _key(header: str, name: str) -> list[Any]:
    """Return the dependencies that describe a key in OpenAPI; the handlers check it."""
    return [Depends(APIKeyHeader(name=header, scheme_name=name, auto_error=False))]


def _add_predict(router: APIRouter, predict: Predict) -> None:
    # FastAPI needs a function to describe the route; it is never called, because `route.app` is replaced below.
    async def documented(request: Request) -> Response:
        raise NotImplementedError

    router.add_api_route(
        paths.PREDICT,
        documented,
        name="predict",
        methods=["POST"],
        summary="Return the best labels for each text",
        response_model=PredictResponse,
        responses=_refusals(400, *([401] if predict.keys else []), 408, 413, 415, 422, 429, 431, 500, 503, 504),
        openapi_extra={**_body(predict.model), "parameters": [deadlines.PARAMETER]},
        dependencies=_key(PREDICT_HEADER, "predicting") if predict.keys else None,
    )
    route = router.routes[-1]
    assert isinstance(route, APIRoute)
    route.app = predict  # the dispatcher calls it without routing


def _add_about(router: APIRouter, settings: Settings, manager: BundleManager, predict: Predict) -> None:
    async def handle_about(request: Request) -> Response:
        predict.keys.check(request_context(request.scope))  # attributes reveal something about the labels
        return JSONResponse(about(manager, settings).model_dump())

    router.add_api_route(
        "/about",
        handle_about,
        name="about",
        summary="Describe the served bundle and the attributes for filters",
        response_model=About,
        responses=_refusals(400, *([401, 429] if predict.keys else []), 408, 431, 500, 503),
        dependencies=_key(PREDICT_HEADER, "predicting") if predict.keys else None,
    )


def _add_comparing(router: APIRouter, manager: BundleManager, predict: Predict, admin: AdminKeys) -> None:
    model = compare_request(predict.model)

    @router.post(
        paths.COMPARE,
        dependencies=_key(ADMIN_HEADER, "administration"),
        summary="Send a request to another bundle, which is opened for comparison",
        response_model=PredictResponse,
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 500, 503, 504),
        openapi_extra={**_body(model), "parameters": [deadlines.PARAMETER]},
    )
    async def compare(request: Request) -> Response:
        admin.check(context := request_context(request.scope))
        body = parse(model, await request.body())
        context.audit_details = {"bundle": body.bundle}
        seconds = deadlines.deadline_seconds(context.headers.get(deadlines.HEADER_BYTES))
        pending = await manager.compare(body.bundle, body.query, seconds)
        results = await pending.answer  # not stored in the context: metrics of the stages count only live traffic
        context.bundle = pending.bundle
        return Response(response_body(pending.bundle, results), media_type="application/json")


def _add_probes(router: APIRouter, manager: BundleManager, metrics: Metrics) -> None:
    @router.get("/livez", summary="Check that the process is alive", response_model=dict[str, bool])
    async def livez(request: Request) -> Response:
        return JSONResponse({"live": True})

    @router.get(
        "/readyz",
        summary="Check whether requests are answered, and from which bundle",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": REFUSALS[503]}},
    )
    async def readyz(request: Request) -> Response:
        readiness = Readiness(**manager.readiness()._asdict())
        return JSONResponse(readiness.model_dump(), 200 if readiness.ready else 503)

    @router.get("/metrics", summary="Return metrics for Prometheus", response_class=Response)
    async def prometheus(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_switching(router: APIRouter, manager: BundleManager, admin: AdminKeys) -> None:

    @router.post(
        "/admin/activate",
        dependencies=_key(ADMIN_HEADER, "administration"),
        summary="Serve another bundle of the store without interruption",
        response_model=ActivateResponse,
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 500),
        openapi_extra=_body(ActivateRequest),
    )
    async def activate(request: Request) -> Response:
        admin.check(context := request_context(request.scope))
        body = parse(ActivateRequest, await request.body())
        context.audit_details = {"bundle": body.bundle}
        result = ActivateResponse(**(await manager.activate(body.bundle))._asdict())
        context.audit_details["previous"] = result.previous
        return JSONResponse(result.model_dump())

    @router.post(
        "/admin/rollback",
        dependencies=_key(ADMIN_HEADER, "administration"),
        summary="Reactivate the previous bundle; immediately if it was kept in memory",
        response_model=ActivateResponse,
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 500),
    )
    async def rollback(request: Request) -> Response:
        admin.check(context := request_context(request.scope))
        result = ActivateResponse(**(await manager.rollback())._asdict())
        context.audit_details = {"bundle": result.bundle, "previous": result.previous}
        return JSONResponse(result.model_dump())


def _add_listing(router: APIRouter, manager: BundleManager, admin: AdminKeys) -> None:
    @router.get(
        "/admin/bundles",
        dependencies=_key(ADMIN_HEADER, "administration"),
        summary="List the bundles of the store and the open generations",
        response_model=BundlesResponse,
        responses=_refusals(400, 401, 403, 408, 422, 429, 431, 500),
    )
    async def bundles(request: Request) -> Response:
        admin.check(request_context(request.scope))
        return JSONResponse((await list_bundles(manager)).model_dump())


def _add_pausing(router: APIRouter, settings: Settings, manager: BundleManager, admin: AdminKeys) -> None:
    model = paused_request(settings)

    @router.get(
        "/admin/paused",
        dependencies=_key(ADMIN_HEADER, "administration"),
        summary="List the paused labels",
        response_model=PausedResponse,
        responses=_refusals(400, 401, 403, 408, 429, 431, 500),
    )
    async def list_paused(request: Request) -> Response:
        admin.check(request_context(request.scope))
        unknown = manager.current.unknown_ids if manager.current else None
        return JSONResponse(PausedResponse(paused=list(manager.paused.ids), unknown=unknown).model_dump())

    @router.post(
        "/admin/paused",
        dependencies=_key(ADMIN_HEADER, "administration"),
        summary="Pause or resume labels, from the next request on",
        response_model=PausedResponse,
        responses=_refusals(400, 401, 403, 408, 413, 415, 422, 429, 431, 500),
        openapi_extra=_body(model),
    )
    async def pause(request: Request) -> Response:
        admin.check(context := request_context(request.scope))
        body = parse(model, await request.body())
        context.audit_details = {"add_count": len(body.add), "remove_count": len(body.remove)}
        before = manager.paused.ids
        unknown = await manager.pause(body.add, body.remove)
        context.audit_details = audit.paused_ids(before, manager.paused.ids, body.add, body.remove)
        return JSONResponse(PausedResponse(paused=list(manager.paused.ids), unknown=unknown).model_dump())
