"""Who may ask and who may administer, and which bodies are read at all."""

import hashlib
import hmac
from collections.abc import Mapping

from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Refusal

ADMIN_HEADER = "X-Admin-Key"
PREDICT_HEADER = "X-Api-Key"


def check_admin(key: SecretStr | None, given: str | None) -> None:
    """Let an administrator through. Raises Refusal 403 when administration is off, 401 without the right key."""
    if key is None or not key.get_secret_value():
        raise Refusal(403, "admin_off", "Administration is off: the service was started without DIPTYCH_ADMIN_KEY.")
    # bytes, because compare_digest refuses text beyond ASCII
    if not hmac.compare_digest(key.get_secret_value().encode(), (given or "").encode("latin-1")):
        raise Refusal(401, "wrong_key", f"This needs the administrator's key in the header {ADMIN_HEADER}.")


class PredictKeys:
    """The keys that may ask; without any, everybody may."""

    def __init__(self, written: SecretStr | None) -> None:
        keys = written.get_secret_value().split(",") if written else []
        self._digests = [_digest(key.strip().encode()) for key in keys if key.strip()]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        """The caller's key as a digest; None where nobody needs one. Raises Refusal 401."""
        if not self._digests:
            return None
        given = _digest(headers.get(PREDICT_HEADER.lower().encode(), b""))
        # Every key is compared, each in constant time, so that the time tells nothing of any.
        if not sum(hmac.compare_digest(given, digest) for digest in self._digests):
            raise Refusal(401, "wrong_key", f"This needs a key in the header {PREDICT_HEADER}.")
        return given


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


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
