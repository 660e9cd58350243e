"""A batcher whose engine the test plays: it keeps the frames that are sent and answers them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.batching.pending_request import PendingRequest
from service.batching.token_estimator import TokenEstimator
from service.engine.protocol import HEAD, BatchAnswers, Outcome, Query, QueryAnswer, Stages, decode_batch
from service.observe.metrics import Metrics
from service.settings import Settings

NO_TIME = Stages(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)


class Bench:
    """A batcher, the batches it sent, and methods that answer them."""

    def __init__(
        self, padded: bool = False, worker_threads: int = 1, clock: Callable[[], float] = perf_counter, **limits: Any
    ) -> None:
        settings = Settings(store=Path("unused"), **{"max_queries": 1, **limits})
        self.batcher = Batcher("words", settings, Metrics(CollectorRegistry()), TokenEstimator(1.0, 512, padded), clock)
        self.worker_threads = worker_threads
        self.sent: list[list[Query]] = []
        self.answered = 0

    def attach(self) -> "Bench":
        self.batcher.attach(
            lambda frame: self.sent.append(decode_batch(frame[HEAD.size :]).queries), self.worker_threads
        )
        return self

    def ask(self, *queries: str) -> PendingRequest:
        return self.batcher.admit(Query.create(queries, 10, None))

    def answer(self, outcome: Outcome = Outcome.ANSWERED) -> None:
        """Answer the oldest batch: each text's result is the text itself."""
        self.answered += 1
        bodies = [QueryAnswer(outcome, ",".join(piece.texts).encode()) for piece in self.sent[self.answered - 1]]
        self.batcher.on_answers(BatchAnswers(self.answered, NO_TIME, bodies))

    def texts(self) -> list[list[str]]:
        """The texts of each batch sent so far."""
        return [[query for piece in batch for query in piece.texts] for batch in self.sent]


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def played(**limits: Any) -> Callable[[Callable[[Bench], Any]], None]:
    """Run a test's body inside a loop, on a bench with these limits."""

    def run(body: Callable[[Bench], Any]) -> None:
        async def inside() -> None:
            await body(Bench(**limits))

        asyncio.run(inside())

    return run
