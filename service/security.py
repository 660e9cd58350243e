"""Who may administer, and how large a body may be."""

import hmac

from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Refusal

ADMIN_HEADER = "X-Admin-Key"


def check_admin(key: SecretStr | None, given: str | None) -> None:
    """Let an administrator through. Raises Refusal 403 when administration is off, 401 without the right key."""
    if key is None or not key.get_secret_value():
        raise Refusal(403, "admin_off", "Administration is off: the service was started without DIPTYCH_ADMIN_KEY.")
    # bytes, because compare_digest refuses text beyond ASCII
    if not hmac.compare_digest(key.get_secret_value().encode(), (given or "").encode()):
        raise Refusal(401, "wrong_key", f"This needs the administrator's key in the header {ADMIN_HEADER}.")


class BodyLimit:
    """ASGI middleware that answers 413 to a body above the limit, by its declared length or as it streams in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(length) > self._max_bytes:  # the HTTP parser lets only digits through
            await self._too_large().response()(scope, receive, send)
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

    def _too_large(self, headers: dict[str, str] | None = None) -> Refusal:
        message = f"The body is larger than {self._max_bytes} bytes; send the texts in several requests."
        return Refusal(413, "body_too_large", message, headers)
