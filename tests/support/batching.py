"""A batcher against an engine played by the test: frames go out through `send`, answers are handed back."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from service.batching import Batcher
from service.frames import HEAD, Answers, Asked, Outcome, Stages, unpack_batch
from service.metrics import Metrics
from service.pending_request import Lengths, PendingRequest
from service.settings import Settings

NO_TIME = Stages(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)


class Bench:
    """A batcher, what it sent, and the means to answer it."""

    def __init__(self, padded: bool = False, lanes: int = 1, **limits: Any) -> None:
        settings = Settings(store=Path("unused"), **{"max_queries": 1, **limits})
        self.batcher = Batcher("words", settings, Metrics(CollectorRegistry()), Lengths(1.0, 512, padded))
        self.lanes = lanes
        self.sent: list[list[Asked]] = []
        self.answered = 0

    def attach(self) -> "Bench":
        self.batcher.attach(lambda frame: self.sent.append(unpack_batch(frame[HEAD.size :])[1]), self.lanes)
        return self

    def ask(self, *queries: str) -> PendingRequest:
        return self.batcher.admit(Asked(queries, 10, None))

    def answer(self, outcome: Outcome = Outcome.ANSWERED) -> None:
        """Answer the oldest batch: each text's result is the text itself."""
        self.answered += 1
        bodies = [(outcome, ",".join(piece.queries).encode()) for piece in self.sent[self.answered - 1]]
        self.batcher.answered(Answers(self.answered, NO_TIME, bodies))

    def texts(self) -> list[list[str]]:
        """The texts of each batch sent so far."""
        return [[query for piece in batch for query in piece.queries] for batch in self.sent]


def played(**limits: Any) -> Callable[[Callable[[Bench], Any]], None]:
    """Run a test's body inside a loop, on a bench with these limits."""

    def run(body: Callable[[Bench], Any]) -> None:
        async def inside() -> None:
            await body(Bench(**limits))

        asyncio.run(inside())

    return run
