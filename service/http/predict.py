"""Answer `POST /predict`: parse the body, queue it with the served generation, return the engine's bytes."""

import asyncio
import random

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.access.callers import Caller, caller_of
from service.access.key_guessing import GuessLimit
from service.access.keys import PredictKeys
from service.access.rate_limit import RateLimit, texts_for_bytes
from service.bundles.manager import BundleManager
from service.engine.protocol import Query
from service.errors import Refusal
from service.http import deadlines
from service.http.body_limits import UNCHECKED_BYTES, least_texts
from service.http.deadlines import deadline_seconds
from service.http.response_cache import ResponseCache, cache_key
from service.http.schemas import parse, predict_request
from service.observe.metrics import Metrics
from service.request_context import RequestContext, request_context
from service.settings import Settings

REFUSAL_SECONDS = (0.25, 0.75)  # until a large request is refused because the queue is full


class Predict:
    """The ASGI application of POST /predict."""

    def __init__(self, settings: Settings, manager: BundleManager, metrics: Metrics, guesses: GuessLimit) -> None:
        self.model = predict_request(settings)
        self._max_queries = settings.max_queries
        self.keys = PredictKeys(settings.predict_keys, guesses, metrics)
        self._limit = RateLimit(settings.rate_limit, settings.burst) if settings.rate_limit else None
        self._manager = manager
        self._cache = ResponseCache(settings.cache_bytes, metrics) if settings.cache_bytes else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._respond(request_context(scope), receive)
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, context: RequestContext, receive: Receive) -> bytes:
        """Return the JSON of the response. Raises Refusal, and ClientDisconnect when the client has disconnected."""
        caller = self._caller(context)
        body = await _read_body(receive)
        is_large = len(body) > UNCHECKED_BYTES
        charged = texts_for_bytes(len(body), self._max_queries)
        if self._limit:  # before parsing, which costs more than refusing
            self._limit.take(caller, charged)
        try:
            self._manager.refuse_early(caller, min(least_texts(body), self._max_queries))
        except Refusal:
            del body
            await _delay_refusal(is_large)
            raise
        query = parse(self.model, body).query
        del body  # the memory budget of the connections counts it only until it is read
        if self._limit and len(query.texts) > charged:
            self._limit.take(caller, len(query.texts) - charged, request_texts=len(query.texts))
        seconds = deadline_seconds(context.headers.get(deadlines.HEADER_BYTES))
        answer = self._cached_answer if self._cache else self._answer
        return await answer(context, query, seconds, caller, is_large)

    def is_refused_unread(self, context: RequestContext) -> bool:
        """Return whether a request is refused because the queue is full, before its body is read."""
        try:
            return self._manager.turns_away(self._caller(context))
        except Refusal:
            return True  # a wrong key has no share

    def _caller(self, context: RequestContext) -> Caller:
        """Return the caller of a request. Raises Refusal 401 or 429."""
        return caller_of(self.keys.check(context), context.address)

    async def _cached_answer(
        self, context: RequestContext, query: Query, seconds: float | None, caller: Caller, is_large: bool
    ) -> bytes:
        """Return the answer from the cache if possible, else from the engine. Raises Refusal."""
        state = self._manager.state if self._cache else None
        if not self._cache or not state:
            return await self._answer(context, query, seconds, caller, is_large)
        key = cache_key(state, query)
        if cached := self._cache.get(key, query.texts):
            context.bundle = self._manager.serving
            return cached
        answer = await self._answer(context, query, seconds, caller, is_large)
        if context.bundle == self._manager.serving and state == self._manager.state:
            self._cache.add(key, query.texts, answer)
        return answer

    async def _answer(
        self, context: RequestContext, query: Query, seconds: float | None, caller: Caller, is_large: bool
    ) -> bytes:
        """Return the engine's answer. Raises Refusal."""
        try:
            pending = self._manager.admit(query, seconds, caller)
        except Refusal as refusal:
            if refusal.status == 429:
                await _delay_refusal(is_large)
            raise
        context.pending = pending
        results = await pending.answer
        context.bundle = pending.bundle  # may differ from the bundle at admission, after a fallback
        return response_body(pending.bundle, results)


def response_body(bundle: str, results: bytes) -> bytes:
    """Return the JSON of a PredictResponse with the engine's results."""
    return b'{"bundle":"%b","results":[%b]}' % (bundle.encode(), results)


async def _delay_refusal(is_large: bool) -> None:
    """Slow down clients that repeat large requests immediately, and keep them from returning together."""
    await asyncio.sleep(random.uniform(*REFUSAL_SECONDS) if is_large else 0)


async def _read_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
