"""Answer `POST /predict`: parse the body, queue it with the served generation, return the engine's bytes.

FastAPI only documents this route. It bypasses FastAPI's layers, which cost more than the rest of the front
(docs/decisions/0042).
"""

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
from service.http.middleware import Exchange, exchange_of
from service.http.response_cache import Answers, key_of
from service.http.schemas import parse, predict_request
from service.observe.metrics import Metrics
from service.settings import Settings

PATH = "/predict"
REFUSAL_SECONDS = (0.25, 0.75)  # until a large request is refused because the queue is full


class Predict:
    """The ASGI application of /predict."""

    def __init__(self, settings: Settings, generations: BundleManager, metrics: Metrics, guesses: GuessLimit) -> None:
        self.model = predict_request(settings)
        self._max_queries = settings.max_queries
        self.keys = PredictKeys(settings.predict_keys, guesses, metrics)
        self._limit = RateLimit(settings.rate_limit, settings.burst) if settings.rate_limit else None
        self._generations = generations
        self._answers = Answers(settings.cache_bytes, metrics) if settings.cache_bytes else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        try:
            body = await self.answer(exchange, receive)
        except Refusal as refusal:
            await exchange.refused(refusal)(scope, receive, send)
            return
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def answer(self, exchange: Exchange, receive: Receive) -> bytes:
        """Return the JSON that answers one request. Raises Refusal, and ClientDisconnect when the client is gone."""
        caller = self._caller(exchange)
        body = await _body(receive)
        is_large = len(body) > UNCHECKED_BYTES
        charged = texts_for_bytes(len(body), self._max_queries)
        if self._limit:  # before parsing, which costs more than refusing
            self._limit.take(caller, charged)
        try:
            self._generations.refuse_early(caller, min(least_texts(body), self._max_queries))
        except Refusal:
            del body
            await _delay_refusal(is_large)
            raise
        wanted = parse(self.model, body).wanted
        del body  # the memory budget of the connections counts it only until it is read
        if self._limit and len(wanted.texts) > charged:
            self._limit.take(caller, len(wanted.texts) - charged, whole=len(wanted.texts))
        seconds = deadline_seconds(exchange.headers.get(deadlines.HEADER_BYTES))
        state = self._generations.state if self._answers else None
        if not self._answers or not state:
            return await self._asked(exchange, wanted, seconds, caller, is_large)
        key = key_of(state, wanted)
        if found := self._answers.get(key):
            exchange.bundle = self._generations.serving
            return found
        answer = await self._asked(exchange, wanted, seconds, caller, is_large)
        if exchange.bundle == self._generations.serving and state == self._generations.state:
            self._answers.keep(key, answer)
        return answer

    def turns_away(self, exchange: Exchange) -> bool:
        """Return whether a request is refused because the queue is full, whatever its body."""
        try:
            return self._generations.turns_away(self._caller(exchange))
        except Refusal:
            return True  # a wrong key has no share

    def _caller(self, exchange: Exchange) -> Caller:
        """Return the caller of a request. Raises Refusal 401 or 429."""
        return caller_of(self.keys.check(exchange), exchange.address)

    async def _asked(
        self, exchange: Exchange, asked: Query, seconds: float | None, caller: Caller, is_large: bool
    ) -> bytes:
        try:
            exchange.ticket = ticket = self._generations.admit(asked, seconds, caller)
        except Refusal as refusal:
            if refusal.status == 429:
                await _delay_refusal(is_large)
            raise
        results = await ticket.answer
        exchange.bundle = ticket.bundle  # may differ from the bundle at admission, after a fallback
        return answer_body(ticket.bundle, results)


async def _delay_refusal(is_large: bool) -> None:
    """Slow down clients that repeat large requests immediately, and keep them from returning together."""
    await asyncio.sleep(random.uniform(*REFUSAL_SECONDS) if is_large else 0)


def answer_body(bundle: str, results: bytes) -> bytes:
    """Return a PredictResponse around the engine's results."""
    return b'{"bundle":"%b","results":[%b]}' % (bundle.encode(), results)


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
