"""One of the engines of a generation: the process that answers at present, and its watchdog."""

import asyncio
import logging
from typing import Protocol

from service.engine.client import EngineProcess
from service.engine.protocol import BatchAnswers, encode_paused
from service.engine.watchdog import Watchdog

LOG = logging.getLogger("diptych")


class SlotObserver(Protocol):
    """Receiver of the events of a slot."""

    name: str

    def on_answers(self, slot: "EngineSlot", batch: BatchAnswers) -> None:
        """Receive the answers of one batch."""

    def on_paused(self, slot: "EngineSlot") -> None:
        """Note that the engine has acknowledged the last list of paused labels."""

    def on_engine_death(self, slot: "EngineSlot", dead: EngineProcess | None) -> None:
        """Replace the engine."""


class EngineSlot:
    """One engine of a generation, or the gap until it is replaced. The observer of its engines."""

    def __init__(self, number: int, observer: SlotObserver, timeout_seconds: float) -> None:
        """Set up a slot. An engine that answers no batch for `timeout_seconds` is killed."""
        self.number = number
        self.engine: EngineProcess | None = None
        self.replacing: asyncio.Task[None] | None = None
        self.opened_at = 0.0  # loop time when the last engine opened
        self.is_excused = False  # whether a query caused the last end, and not the bundle
        self.unknown_ids: list[str] | None = None  # paused ids that the bundle does not have; None: not reported
        self._observer = observer
        self._timeout_seconds = timeout_seconds
        self._watchdog = Watchdog(timeout_seconds, self._on_hang)
        self._pending_acks = 0  # lists of paused labels that the engine has not acknowledged

    @property
    def obeys_paused(self) -> bool:
        """Whether its engine obeys the last list of paused labels; a slot without an engine answers nothing."""
        return self.engine is None or not self._pending_acks

    def set_engine(self, engine: EngineProcess) -> None:
        """Use a new engine."""
        self.engine, self._pending_acks = engine, 0
        self.opened_at = asyncio.get_running_loop().time()

    def send_paused(self, ids: tuple[str, ...]) -> None:
        """Send the paused labels to the engine."""
        if self.engine:
            self._pending_acks += 1
            self.engine.send(encode_paused(ids))

    def send(self, batch: bytes, oldest: int | None) -> None:
        """Send a batch; `oldest` is the number of the oldest unanswered one."""
        if self.engine:
            self.engine.send(batch)
        self._watchdog.update(oldest)

    def watch(self, oldest: int | None) -> None:
        """Expect an answer of the batch `oldest`; None: of none."""
        self._watchdog.update(oldest)

    async def close(self) -> None:
        """Stop the replacement and end the engine."""
        if self.replacing:
            self.replacing.cancel()
            await asyncio.wait([self.replacing])
        self._watchdog.update(None)
        if self.engine:
            await self.engine.end()

    def on_answers(self, batch: BatchAnswers) -> None:
        """Receive the answers of one batch."""
        self._observer.on_answers(self, batch)

    def on_paused(self, unknown_ids: list[str]) -> None:
        """Note that the engine obeys a list of paused labels."""
        self._pending_acks -= 1
        if not self._pending_acks:
            self.unknown_ids = unknown_ids
            self._observer.on_paused(self)

    def on_engine_death(self) -> None:
        """Report the end of the engine."""
        dead, self.engine = self.engine, None
        self._watchdog.update(None)
        self._observer.on_engine_death(self, dead)

    def _on_hang(self) -> None:
        LOG.error("the engine of bundle %s has not answered for %g s", self._observer.name, self._timeout_seconds)
        if self.engine:
            self.engine.kill()
