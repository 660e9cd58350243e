"""Dispatch requests to their handlers, and turn refusals into responses.

`POST /predict` goes directly to its handler: routing through FastAPI costs more than the rest of the front
(docs/decisions/0075). FastAPI's router has all other routes.
"""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Refusal
from service.http import paths
from service.request_context import request_context

ERROR_CODES = {404: "not_found", 405: "wrong_method"}
MESSAGES = {
    404: "There is nothing at this path; POST /predict answers queries and /openapi.json describes the rest.",
    405: "This path does not take this method; /openapi.json says which it takes.",
}


class Dispatcher:
    """The innermost ASGI application, inside all middleware."""

    def __init__(self, predict: ASGIApp, fastapi: FastAPI) -> None:
        self._predict = predict
        self._fastapi = fastapi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and scope["path"] == paths.PREDICT and scope["method"] == "POST":
                await self._predict(scope, receive, send)
            else:
                await self._route(scope, receive, send)
        except Refusal as refusal:
            await request_context(scope).error_response(refusal)(scope, receive, send)
        except HTTPException as error:
            response = request_context(scope).error_response(self._refusal(error, scope["path"]))
            await response(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call FastAPI's routes, which handle GET and POST; answer HEAD and OPTIONS on every path."""
        scope["app"] = self._fastapi  # without it the router answers errors in its own format
        if scope["type"] == "http":
            if scope["method"] == "HEAD":  # the server omits the body
                scope = {**scope, "method": "GET"}
            elif scope["method"] == "OPTIONS" and (methods := self._methods(scope["path"])):
                await Response(status_code=204, headers={"Allow": _allow(methods)})(scope, receive, send)
                return
        await self._fastapi.router(scope, receive, send)

    def _refusal(self, error: HTTPException, path: str) -> Refusal:
        """Return an error of the router in the format of all errors."""
        code = ERROR_CODES.get(error.status_code, "refused")
        message = MESSAGES.get(error.status_code, error.detail)
        headers = {"Allow": _allow(self._methods(path))} if error.status_code == 405 else error.headers
        return Refusal(error.status_code, code, message, headers)

    def _methods(self, path: str) -> set[str]:
        """Return the methods of all routes with this path; of all routes for the path *."""
        routes = [route for route in self._fastapi.routes if isinstance(route, Route) and path in (route.path, "*")]
        return {method for route in routes for method in route.methods or ()}


def _allow(methods: set[str]) -> str:
    """Return the Allow header for the methods of a path: GET implies HEAD, and OPTIONS is always allowed."""
    return ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))
