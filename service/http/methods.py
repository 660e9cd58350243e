"""Answer HEAD and OPTIONS on every route: HEAD as GET without a body, OPTIONS with the methods of the path."""

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class HeadAndOptions:
    """ASGI middleware around the routes, which handle only GET and POST."""

    def __init__(self, app: ASGIApp, methods_of: Callable[[str], set[str]]) -> None:
        """Wrap `app`. `methods_of` returns the methods of a path, none for an unknown one."""
        self._app = app
        self._methods_of = methods_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] == "HEAD":  # the server leaves the body out
                scope = {**scope, "method": "GET"}
            elif scope["method"] == "OPTIONS" and (methods := self._methods_of(scope["path"])):
                await Response(status_code=204, headers={"Allow": allow(methods)})(scope, receive, send)
                return
        await self._app(scope, receive, send)


def allow(methods: set[str]) -> str:
    """Return the Allow header for the methods of a path: GET implies HEAD, and OPTIONS is always allowed."""
    return ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))
