"""Several engines take batches from one queue."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.batching.pending_request import PendingRequest
from service.batching.token_estimator import TokenEstimator
from service.engine.protocol import HEAD, Batch, BatchAnswers, Outcome, Query, QueryAnswer, decode_batch
from service.observe.metrics import Metrics
from service.settings import Settings
from tests.support.batching import NO_TIME


class Engines:
    """A batcher with two engines that the test plays; `sent` has the batches of each."""

    def __init__(self) -> None:
        settings = Settings(store=Path("unused"), max_queries=1, max_batch_queries=1, batches_ahead=0)
        self.batcher = Batcher("words", settings, Metrics(CollectorRegistry()), TokenEstimator(1.0, 512, False))
        self.sent: list[list[Batch]] = [[], []]
        for lane in range(2):
            self.attach(lane)

    def attach(self, lane: int) -> None:
        self.batcher.attach(lambda frame: self.sent[lane].append(decode_batch(frame[HEAD.size :])), 1, lane)

    def ask(self, text: str) -> PendingRequest:
        return self.batcher.admit(Query.create([text], 10))

    def answer(self, lane: int) -> None:
        batch = self.sent[lane].pop(0)
        bodies = [QueryAnswer(Outcome.ANSWERED, query.texts[0].encode()) for query in batch.queries]
        self.batcher.on_answers(BatchAnswers(batch.number, NO_TIME, bodies), lane)

    def texts(self, lane: int) -> list[str]:
        return [query.texts[0] for batch in self.sent[lane] for query in batch.queries]


def test_an_idle_engine_gets_the_next_batch() -> None:
    """One engine would do all the work."""

    async def body() -> None:
        engines = Engines()
        requests = [engines.ask(text) for text in "abc"]
        assert (engines.texts(0), engines.texts(1)) == (["a"], ["b"])
        engines.answer(1)
        assert (engines.texts(0), engines.texts(1)) == (["a"], ["c"])
        engines.answer(0)
        engines.answer(1)
        assert [await request.answer for request in requests] == [b"a", b"b", b"c"]
        assert (engines.batcher.oldest(0), engines.batcher.oldest(1)) == (None, None)

    asyncio.run(body())


def test_only_the_batches_of_the_dead_engine_are_sent_again() -> None:
    """A crash would blame the requests of the other engine, or answer them twice."""

    async def body() -> None:
        engines = Engines()
        first, second, third = (engines.ask(text) for text in "abc")
        engines.batcher.on_engine_death(0)
        assert (first.deaths, second.deaths, third.deaths) == (1, 0, 0)
        engines.answer(1)
        assert engines.texts(1) == ["a"]  # before the later request, and without waiting for the next engine
        engines.sent[0].clear()
        engines.attach(0)
        assert engines.texts(0) == ["c"]
        engines.answer(0)
        engines.answer(1)
        assert [await request.answer for request in (first, second, third)] == [b"a", b"b", b"c"]

    asyncio.run(body())


def test_an_engine_cannot_answer_for_another() -> None:
    """An engine that is out of step could end the requests of another one."""

    async def body() -> None:
        engines = Engines()
        request = engines.ask("a")
        number = engines.sent[0][0].number
        with pytest.raises(ValueError, match=f"answered batch {number}; expected none"):
            engines.batcher.on_answers(BatchAnswers(number, NO_TIME, [QueryAnswer(Outcome.ANSWERED, b"x")]), 1)
        engines.answer(0)
        assert await request.answer == b"a"

    asyncio.run(body())
