"""How much a caller may ask, and which bodies are read at all."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Refusal

ADMIN_HEADER = "X-Admin-Key"
PREDICT_HEADER = "X-Api-Key"
REMEMBERED_CALLERS = 10_000


class RateLimit:
    """A token bucket for each caller: `rate` texts a second in the long run, `burst` of them at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._callers: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # texts left, and when that was so

    def take(self, caller: bytes, texts: int, now: float | None = None) -> None:
        """Count a request of so many texts. Raises Refusal 429 that says when there is room for it."""
        now = monotonic() if now is None else now
        left, since = self._callers.pop(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self._rate)
        enough = left >= texts
        self._callers[caller] = (left - texts if enough else left, now)
        if len(self._callers) > REMEMBERED_CALLERS:
            self._callers.popitem(last=False)
        if not enough:
            seconds = max(1, math.ceil((texts - left) / self._rate))
            message = f"This caller may ask {self._rate:g} texts a second. Try again in {seconds} s."
            raise Refusal(429, "rate_limited", message, {"Retry-After": str(seconds)})


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
