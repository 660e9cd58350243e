"""Refuse bodies that no handler should read: too large or compressed."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Refusal
from service.request_context import request_context


class BodyGuard:
    """ASGI middleware that limits the size of bodies (413) and refuses compressed ones (415).

    The size is checked by Content-Length, or while a chunked body arrives. A compressed body could be a thousand times
    larger than it looks.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = request_context(scope).headers
        if refusal := self._check(headers):
            await request_context(scope).error_response(refusal)(scope, receive, send)
            return
        if b"content-length" not in headers:  # otherwise the parser passes no more than was declared
            receive = self._limited(receive)
        await self._app(scope, receive, send)

    def _check(self, headers: Mapping[bytes, bytes]) -> Refusal | None:
        if int(headers.get(b"content-length", b"0")) > self._max_bytes:  # the HTTP parser allows only digits
            return self._too_large()
        if (coding := headers.get(b"content-encoding")) and coding.strip().lower() != b"identity":
            message = "A compressed body is not read; send it as plain JSON, without Content-Encoding."
            return Refusal(415, "compressed_body", message)
        return None

    def _limited(self, receive: Receive) -> Receive:
        """Return a `receive` that raises Refusal 413 when the body exceeds the limit."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large({"Connection": "close"})
            return message

        return limited

    def _too_large(self, headers: dict[str, str] | None = None) -> Refusal:
        message = f"The body is larger than {self._max_bytes} bytes; split it into several requests."
        return Refusal(413, "body_too_large", message, headers)
