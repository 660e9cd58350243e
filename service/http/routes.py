"""Thin handlers: check, parse, ask the part whose work it is, and what OpenAPI says of each."""

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
from service.http import audit, deadlines
from service.http.listing import about, list_bundles
from service.http.middleware import COMPARE, exchange_of
from service.http.predict import PATH as PREDICT_PATH
from service.http.predict import Predict, answer_body
from service.http.schemas import (
    About,
    ActivateRequest,
    ActivateResponse,
    BundlesResponse,
    ErrorResponse,
    PausedResponse,
    PredictResponse,
    Readiness,
    compare_request,
    parse,
    paused_request,
)
from service.observe.metrics import Metrics
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


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": REFUSALS[status]} for status in statuses}


def _body(model: type[Any]) -> dict[str, Any]:
    """OpenAPI for a body that the handler parses from its bytes, which FastAPI cannot see."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def _key_in(header: str, name: str) -> APIKeyHeader:
    return APIKeyHeader(name=header, scheme_name=name, auto_error=False)  # two of one name would be one in OpenAPI


class Direct(APIRoute):
    """A route that FastAPI documents and does not touch: its handler takes the request and gives the response.

    Solving dependencies that a handler does not have costs as much as all the rest of FastAPI.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def add_routes(
    router: APIRouter,
    settings: Settings,
    generations: BundleManager,
    metrics: Metrics,
    predict: Predict,
    admin: AdminKeys,
) -> None:
    """All routes, wired to their parts."""
    _add_predict(router, predict)
    add_front_page(router, settings.console)
    _add_about(router, settings, generations, predict)
    _add_probes(router, generations, metrics)
    _add_admin(router, generations, admin)
    _add_comparing(router, generations, predict, admin)
    _add_pausing(router, settings, generations, admin)


def _add_predict(router: APIRouter, predict: Predict) -> None:
    async def answered_by_itself(request: Request) -> Response:
        body = await predict.answer(exchange_of(request.scope), request.receive)
        return Response(body, media_type="application/json")

    router.add_api_route(
        PREDICT_PATH,
        answered_by_itself,
        name="predict",
        methods=["POST"],
        summary="The best labels for each text",
        response_model=PredictResponse,
        responses=_refusals(400, *([401] if predict.keys else []), 408, 413, 415, 422, 429, 431, 500, 503, 504),
        openapi_extra={**_body(predict.model), "parameters": [deadlines.PARAMETER]},
        # OpenAPI alone reads it
        dependencies=[Depends(_key_in(PREDICT_HEADER, "predicting"))] if predict.keys else None,
        route_class_override=Direct,
    )


def _add_about(router: APIRouter, settings: Settings, generations: BundleManager, predict: Predict) -> None:
    async def answered_about(request: Request) -> Response:
        predict.keys.check(exchange_of(request.scope))  # attributes reveal something of the labels
        return JSONResponse(about(generations, settings).model_dump())

    router.add_api_route(
        "/about",
        answered_about,
        name="about",
        summary="The bundle that is served, and what its labels can be filtered by",
        response_model=About,
        responses=_refusals(400, *([401, 429] if predict.keys else []), 408, 431, 500, 503),
        dependencies=[Depends(_key_in(PREDICT_HEADER, "predicting"))] if predict.keys else None,
        route_class_override=Direct,
    )


def _add_comparing(router: APIRouter, generations: BundleManager, predict: Predict, admin: AdminKeys) -> None:
    keyed = [Depends(_key_in(ADMIN_HEADER, "administration"))]  # OpenAPI alone reads it
    model = compare_request(predict.model)

    @router.post(
        COMPARE,
        dependencies=keyed,
        summary="The same question to another bundle, which is opened for it",
        response_model=PredictResponse,
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 500, 503, 504),
        openapi_extra={**_body(model), "parameters": [deadlines.PARAMETER]},
    )
    async def compare(request: Request) -> Response:
        admin.check(exchange := exchange_of(request.scope))
        asked = parse(model, await request.body())
        exchange.act = {"bundle": asked.bundle}
        seconds = deadlines.deadline_seconds(exchange.headers.get(deadlines.HEADER_BYTES))
        ticket = await generations.compare(asked.bundle, asked.wanted, seconds)
        results = await ticket.answer  # not the exchange's ticket: its timings count live traffic only
        exchange.bundle = ticket.bundle
        return Response(answer_body(ticket.bundle, results), media_type="application/json")


def _add_probes(router: APIRouter, generations: BundleManager, metrics: Metrics) -> None:
    @router.get("/livez", summary="Whether the process answers at all")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    @router.get(
        "/readyz",
        summary="Whether requests are answered, and from which bundle",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": REFUSALS[503]}},
    )
    async def readyz() -> Response:
        readiness = Readiness(**generations.readiness()._asdict())
        return JSONResponse(readiness.model_dump(), 200 if readiness.ready else 503)

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_admin(router: APIRouter, generations: BundleManager, admin: AdminKeys) -> None:
    keyed = [Depends(_key_in(ADMIN_HEADER, "administration"))]  # OpenAPI alone reads it

    @router.post(
        "/admin/activate",
        dependencies=keyed,
        summary="Serve another bundle of the store, without a gap",
        response_model=ActivateResponse,
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 500),
        openapi_extra=_body(ActivateRequest),
    )
    async def activate(request: Request) -> Response:
        admin.check(exchange := exchange_of(request.scope))
        asked = parse(ActivateRequest, await request.body())
        exchange.act = {"bundle": asked.bundle}
        done = ActivateResponse(**(await generations.activate(asked.bundle))._asdict())
        exchange.act["previous"] = done.previous
        return JSONResponse(done.model_dump())

    @router.post(
        "/admin/rollback",
        dependencies=keyed,
        summary="Serve the bundle that was active before; at once, if it was kept",
        response_model=ActivateResponse,
        responses=_refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 500),
    )
    async def rollback(request: Request) -> Response:
        admin.check(exchange := exchange_of(request.scope))
        done = ActivateResponse(**(await generations.rollback())._asdict())
        exchange.act = {"bundle": done.bundle, "previous": done.previous}
        return JSONResponse(done.model_dump())

    @router.get(
        "/admin/bundles",
        dependencies=keyed,
        summary="The store's bundles, and what is opened of them",
        response_model=BundlesResponse,
        responses=_refusals(400, 401, 403, 408, 422, 429, 431, 500),
    )
    async def bundles(request: Request) -> Response:
        admin.check(exchange_of(request.scope))
        return JSONResponse((await list_bundles(generations)).model_dump())


def _add_pausing(router: APIRouter, settings: Settings, generations: BundleManager, admin: AdminKeys) -> None:
    keyed = [Depends(_key_in(ADMIN_HEADER, "administration"))]  # OpenAPI alone reads it
    model = paused_request(settings)

    @router.get(
        "/admin/paused",
        dependencies=keyed,
        summary="The labels that are not shown",
        response_model=PausedResponse,
        responses=_refusals(400, 401, 403, 408, 429, 431, 500),
    )
    async def list_paused(request: Request) -> Response:
        admin.check(exchange_of(request.scope))
        unknown = generations.current.unknown_ids if generations.current else None
        return JSONResponse(PausedResponse(paused=list(generations.paused.ids), unknown=unknown).model_dump())

    @router.post(
        "/admin/paused",
        dependencies=keyed,
        summary="Leave labels out of every answer, from the next request on",
        response_model=PausedResponse,
        responses=_refusals(400, 401, 403, 408, 413, 415, 422, 429, 431, 500),
        openapi_extra=_body(model),
    )
    async def pause(request: Request) -> Response:
        admin.check(exchange := exchange_of(request.scope))
        asked = parse(model, await request.body())
        exchange.act = {"add_count": len(asked.add), "remove_count": len(asked.remove)}
        before = generations.paused.ids
        unknown = await generations.pause(asked.add, asked.remove)
        exchange.act = audit.paused_ids(before, generations.paused.ids, asked.add, asked.remove)
        return JSONResponse(PausedResponse(paused=list(generations.paused.ids), unknown=unknown).model_dump())
