"""One bundle being served: its engine, its requests, and the replacement of an engine that died or hangs."""

import asyncio
import logging
from typing import Self

from retrieval.errors import DiptychError
from retrieval.store import Store
from service import errors
from service.batching import Batcher, Ticket
from service.frames import Answers, Asked
from service.metrics import Metrics
from service.process import EngineProcess, Opened
from service.settings import Settings

LOG = logging.getLogger("diptych")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts to replace an engine


class Generation:
    """One bundle being served: its engine, its requests, and the replacement of the engine when it dies."""

    def __init__(self, number: int, name: str, store: Store, settings: Settings, metrics: Metrics) -> None:
        self.number = number
        self.name = name
        self.trouble: str | None = None  # why no engine can be had; None while there is one or one is on its way
        self._folder = store.bundle_path(name)
        self._settings = settings
        self._metrics = metrics
        self._engine: EngineProcess | None = None
        self._batcher: Batcher | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> Self:
        """Start the engine and wait until it can answer. Raises BundleError."""
        self._engine = await self._start_engine()
        self._batcher = Batcher(self.name, self._settings, self._metrics, self._engine.opened.lengths)
        self._batcher.attach(self._send)
        self._metrics.begins(self)
        return self

    @property
    def opened(self) -> Opened | None:
        """What the engine said of the bundle; None while there is no engine."""
        return self._engine.opened if self._engine else None

    @property
    def engine(self) -> int | None:
        """The engine's process id; None while there is no engine."""
        return self._engine.pid if self._engine else None

    @property
    def unfinished(self) -> int:
        return self.batcher.unfinished

    @property
    def batcher(self) -> Batcher:
        if self._batcher is None:
            raise RuntimeError(f"generation {self.number} is asked before it is open")
        return self._batcher

    def admit(self, asked: Asked, seconds: float | None = None) -> Ticket:
        """Queue a request that waits `seconds` at most. Raises Refusal 429 or 503."""
        if self.trouble:
            raise errors.unavailable(f"Bundle {self.name} cannot be served just now; /readyz says why.")
        return self.batcher.admit(asked, seconds)

    async def close(self) -> None:
        """Finish what was admitted, then end the engine."""
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self.batcher.drained()
        except TimeoutError:
            LOG.warning("%d requests of bundle %s were still unfinished", self.batcher.unfinished, self.name)
            self.batcher.give_up(errors.unavailable("The service stopped before this request was answered."))
        self._metrics.ends(self)
        self._closed = True
        if self._replacing:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        if self._watchdog:
            self._watchdog.cancel()
        if self._engine:
            await self._engine.end()

    async def _start_engine(self) -> EngineProcess:
        return await EngineProcess.start(self._folder, self._settings, self._answered, self._died)

    def _send(self, batch: bytes) -> None:
        if self._engine:
            self._engine.send(batch)
        if self._watchdog is None:
            self._watch()

    def _answered(self, answers: Answers) -> None:
        self.batcher.answered(answers)
        self._unwatch()
        if self.batcher.in_flight:
            self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(self._settings.silence_seconds, self._silent)

    def _unwatch(self) -> None:
        if self._watchdog:
            self._watchdog.cancel()
            self._watchdog = None

    def _silent(self) -> None:
        LOG.error("the engine of bundle %s has not answered for %g s", self.name, self._settings.silence_seconds)
        if self._engine:
            self._engine.kill()

    def _died(self) -> None:
        dead, self._engine = self._engine, None
        self._unwatch()
        self._metrics.restarts.inc()
        LOG.error("the engine of bundle %s (process %s) ended; starting another", self.name, dead and dead.pid)
        self._replacing = asyncio.create_task(self._replace(dead))
        self.batcher.lost()

    async def _replace(self, dead: EngineProcess | None) -> None:
        pause = FIRST_PAUSE
        if dead:
            await dead.end()
        while not self._closed:
            try:
                self._engine = await self._start_engine()
            except DiptychError as error:
                self.trouble = str(error)
                LOG.error("bundle %s: %s", self.name, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.trouble = None
                self.batcher.attach(self._send)
                return
