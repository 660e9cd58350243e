"""Names of the key headers, and limits on request bodies."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Refusal

ADMIN_HEADER = "X-Admin-Key"
PREDICT_HEADER = "X-Api-Key"


class BodyGuard:
    """ASGI middleware that refuses what no handler should read: a body above the limit (413), by its declared length or
    as it streams in, and a compressed one (415), which could be a thousand times larger than it looks."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: Mapping[bytes, bytes] = scope["exchange"].headers
        if int(headers.get(b"content-length", b"0")) > self._max_bytes:  # the HTTP parser lets only digits through
            await self._refuse(self._too_large(), scope, receive, send)
            return
        if (coding := headers.get(b"content-encoding")) and coding.strip().lower() != b"identity":
            message = "A compressed body is not read; send it as plain JSON, without Content-Encoding."
            await self._refuse(Refusal(415, "compressed_body", message), scope, receive, send)
            return
        if b"content-length" in headers:  # the parser passes no more than was declared
            await self._app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large({"Connection": "close"})
            return message

        await self._app(scope, limited, send)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["exchange"].refused(refusal)(scope, receive, send)

    def _too_large(self, headers: dict[str, str] | None = None) -> Refusal:
        message = f"The body is larger than {self._max_bytes} bytes; split it into several requests."
        return Refusal(413, "body_too_large", message, headers)
