"""A batcher whose engine the test plays: it keeps the frames that are sent and answers them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.batching.pending_request import Lengths, PendingRequest
from service.engine.protocol import HEAD, BatchAnswers, Outcome, Query, QueryAnswer, Stages, decode_batch
from service.observe.metrics import Metrics
from service.settings import Settings

NO_TIME = Stages(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)


class Bench:
    """A batcher, the batches it sent, and methods that answer them."""

    def __init__(self, padded: bool = False, lanes: int = 1, **limits: Any) -> None:
        settings = Settings(store=Path("unused"), **{"max_queries": 1, **limits})
        self.batcher = Batcher("words", settings, Metrics(CollectorRegistry()), Lengths(1.0, 512, padded))
        self.lanes = lanes
        self.sent: list[list[Query]] = []
        self.answered = 0

    def attach(self) -> "Bench":
        self.batcher.attach(lambda frame: self.sent.append(decode_batch(frame[HEAD.size :]).queries), self.lanes)
        return self

    def ask(self, *queries: str) -> PendingRequest:
        return self.batcher.admit(Query.create(queries, 10, None))

    def answer(self, outcome: Outcome = Outcome.ANSWERED) -> None:
        """Answer the oldest batch: each text's result is the text itself."""
        self.answered += 1
        bodies = [QueryAnswer(outcome, ",".join(piece.texts).encode()) for piece in self.sent[self.answered - 1]]
        self.batcher.answered(BatchAnswers(self.answered, NO_TIME, bodies))

    def texts(self) -> list[list[str]]:
        """The texts of each batch sent so far."""
        return [[query for piece in batch for query in piece.texts] for batch in self.sent]


class Clock:
    """A clock that stands still until a test moves it, in place of the batcher's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in ("service.batching.batcher", "service.batching.pending_request"):
            monkeypatch.setattr(f"{module}.perf_counter", lambda: self.now)


def played(**limits: Any) -> Callable[[Callable[[Bench], Any]], None]:
    """Run a test's body inside a loop, on a bench with these limits."""

    def run(body: Callable[[Bench], Any]) -> None:
        async def inside() -> None:
            await body(Bench(**limits))

        asyncio.run(inside())

    return run
