"""One bundle being served: its engine, its requests, and the replacement of an engine that died or hangs."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Self

from retrieval.errors import DiptychError
from service import errors
from service.access.callers import ANYONE, Caller
from service.batching.batcher import Batcher
from service.batching.pending_request import PendingRequest
from service.engine.client import EngineProcess, Opened
from service.engine.cpu_throttle import Traffic
from service.engine.protocol import Answers, Asked, Kind, pack_json
from service.engine.watchdog import Watchdog
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor, described
from service.settings import Settings

LOG = logging.getLogger("diptych")
FIRST_PAUSE = 0.1  # seconds before the third engine; the pause doubles each time and includes the life of the last one
PAUSE_AFTER_DEATH, PAUSE_AFTER_FAILURE = 0.8, 5.0  # longest pause, in seconds; shorter after an engine that had opened
LATELY = 0.1  # seconds

Beside = Callable[["Generation"], Traffic | None]


class Generation:
    """One open bundle: its engine, its requests, and the replacement of an engine that dies.

    `paused` returns the ids of labels that must not be shown. `crashes` is called each time so many engines have died
    in a short time that the bundle is probably faulty. `beside` returns the traffic of another generation, which must
    not be slowed down by loading an engine; None when no other generation answers, so that it loads at full speed.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        settings: Settings,
        metrics: Metrics,
        paused: Callable[[], Sequence[str]],
        crashes: "Callable[[Generation], None]",
        beside: Beside,
        supervisor: Supervisor,
    ) -> None:
        self.number = number
        self.name = folder.name
        self.trouble: str | None = None  # why no engine can be started; None while one runs or starts
        self.unknown: list[str] | None = None  # paused ids that the bundle does not have; None: not reported yet
        self.folder = folder  # used by the next engine; the folder of the running one may have been removed
        self._settings = settings
        self._metrics = metrics
        self._paused = paused
        self._crashes = crashes
        self._beside = beside
        self._supervisor = supervisor
        self._engine: EngineProcess | None = None
        self._batcher: Batcher | None = None
        self._watchdog = Watchdog(settings.silence_seconds, self._silent)
        self._replacing: asyncio.Task[None] | None = None
        self._asked_at = 0.0  # time of the last admitted request
        self._opened_at = 0.0  # loop time when the last engine opened
        self._ends: deque[float] = deque()  # loop times of the last engine ends and failed starts
        self._excused = False  # whether a query caused the last end, and not the bundle
        self.told = 0  # version of the paused labels; requests sent after a list obey it
        self._untold = 0  # lists of paused labels that the engine has not acknowledged
        self._told = asyncio.Event()
        self._closed = False

    async def open(self) -> Self:
        """Start the engine and wait until it can answer. Raises BundleError."""
        await self._attach_new_engine()
        self._metrics.begins(self)
        return self

    @property
    def opened(self) -> Opened | None:
        """The engine's description of the bundle; None while there is no engine."""
        return self._engine.opened if self._engine else None

    @property
    def engine(self) -> int | None:
        """Process id of the engine; None while there is no engine."""
        return self._engine.pid if self._engine else None

    @property
    def unfinished(self) -> int:
        return self.batcher.unfinished

    @property
    def healthy(self) -> bool:
        """Whether an engine can answer."""
        return self.opened is not None and self.trouble is None

    @property
    def batcher(self) -> Batcher:
        if self._batcher is None:
            raise RuntimeError(f"generation {self.number} is asked before it is open")
        return self._batcher

    def admit(self, asked: Asked, seconds: float | None = None, caller: Caller = ANYONE) -> PendingRequest:
        """Queue a request for at most `seconds`. Raises Refusal 422, 429 or 503."""
        if self.trouble:
            raise errors.unavailable(f"Bundle {self.name} cannot be served just now; /readyz says why.")
        self._asked_at = perf_counter()
        return self.batcher.admit(asked, seconds, caller)

    def asked_lately(self) -> bool:
        """Return whether requests are pending or one was admitted within the last 0.1 s."""
        return self.healthy and (self.unfinished > 0 or perf_counter() - self._asked_at < LATELY)

    def tell_paused(self) -> None:
        """Send the paused labels to the engine. Batches sent afterwards are answered without them."""
        self.told += 1
        self._told.clear()
        if self._engine:
            self._untold += 1
            self._engine.send(pack_json(Kind.PAUSED, self._paused()))

    async def told_paused(self, seconds: float) -> list[str] | None:
        """Return the paused ids that the bundle does not have; None when the engine does not report them in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            return None
        return self.unknown

    def hand_over(self, successor: "Generation") -> None:
        """Move the unanswered requests to another generation."""
        self.batcher.drain_to(successor.batcher)

    async def close(self) -> None:
        """Answer the admitted requests, then end the engine."""
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self.batcher.drained()
        except TimeoutError:
            LOG.warning("%d requests of bundle %s were still unfinished", self.batcher.unfinished, self.name)
            self.batcher.refuse_all(errors.unavailable("The service stopped before this request was answered."))
        self._metrics.ends(self)
        self._closed = True
        if self._replacing:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        self._watchdog.saw(None)
        if self._engine:
            await self._engine.end()

    async def _start_engine(self) -> EngineProcess:
        return await EngineProcess.start(
            self.folder, self._settings, self._answered, self._died, self._answered_paused, self._beside(self)
        )

    def _attach(self, engine: EngineProcess) -> None:
        self._engine = engine
        if self._batcher is None:
            self._batcher = Batcher(self.name, self._settings, self._metrics, engine.opened.lengths)
        self._opened_at = asyncio.get_running_loop().time()
        self._untold = 0
        self.tell_paused()  # before the first batch
        self.batcher.attach(self._send, engine.opened.lanes)

    def _send(self, batch: bytes) -> None:
        if self._engine:
            self._engine.send(batch)
        self._watchdog.saw(self.batcher.oldest)

    def _answered(self, answers: Answers) -> None:
        self.batcher.on_answers(answers)
        self._watchdog.saw(self.batcher.oldest)

    def _answered_paused(self, unknown: list[str]) -> None:
        self._untold -= 1
        if not self._untold:
            self.unknown = unknown
            self._told.set()

    def _silent(self) -> None:
        LOG.error("the engine of bundle %s has not answered for %g s", self.name, self._settings.silence_seconds)
        if self._engine:
            self._engine.kill()

    def _died(self) -> None:
        dead, self._engine = self._engine, None
        self._watchdog.saw(None)
        self._metrics.restarts.inc()
        self._replacing = self._supervisor.retry("engine_replacement", partial(self._replace, dead))
        self._excused = self.batcher.on_engine_death()

    async def _replace(self, dead: EngineProcess | None) -> None:
        """Start engines until one answers. The supervisor retries it after an unexpected exception."""
        longest, lived = PAUSE_AFTER_DEATH, asyncio.get_running_loop().time() - self._opened_at
        if dead:
            await dead.end()
            LOG.error("the engine of bundle %s (process %d) ended %s; starting another", self.name, dead.pid, dead.how)
        while not self._closed:
            ended = self._ended()
            if ended >= self._settings.crashes:
                self._crashes(self)
            if ended > 1:
                await asyncio.sleep(max(min(FIRST_PAUSE * 2 ** (ended - 2), longest) - lived, 0))
            try:
                await self._attach_new_engine()
            except (DiptychError, OSError) as error:
                self.trouble, longest, lived = str(error), PAUSE_AFTER_FAILURE, 0.0
                LOG.error("bundle %s: %s", self.name, error)
            except Exception as error:
                self.trouble = f"no engine can be started for bundle {self.name} ({described(error)})"
                raise
            else:
                self.trouble = None
                return

    async def _attach_new_engine(self) -> None:
        engine = await self._start_engine()
        try:
            self._attach(engine)
        except BaseException:
            self._engine = None
            await engine.end()
            raise

    def _ended(self) -> int:
        """Count the end of an engine; return the number of ends within `crash_seconds`."""
        now = asyncio.get_running_loop().time()
        if self._excused and self._ends:
            self._ends.pop()  # the first end by the same query
        elif not self._excused:
            self._ends.append(now)
        self._excused = False
        while self._ends and self._ends[0] < now - self._settings.crash_seconds:
            self._ends.popleft()
        return len(self._ends)
