"""One open bundle: its engine, its requests, and the replacement of an engine that died or hangs."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol, Self

from retrieval.errors import DiptychError
from service import errors
from service.access.callers import ANYONE, Caller
from service.batching.batcher import Batcher
from service.batching.pending_request import PendingRequest
from service.batching.token_estimator import TokenEstimator
from service.bundles.lifecycle import Lifecycle, State
from service.bundles.paused_labels import PausedBroadcaster
from service.engine.client import EngineObserver, EngineProcess
from service.engine.load_policy import LoadPolicy
from service.engine.protocol import BatchAnswers, BundleInfo, Query, encode_paused
from service.engine.watchdog import Watchdog
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor, describe_error
from service.settings import Settings

LOG = logging.getLogger("diptych")
# Seconds before the third engine is started. The back-off doubles each time and includes the life of the last engine.
FIRST_RESTART_BACKOFF = 0.1
LONGEST_RESTART_BACKOFF = 0.8  # after an engine that had opened the bundle
LONGEST_RETRY_BACKOFF = 5.0  # after an engine that had not
RECENT_SECONDS = 0.1

StartEngine = Callable[[Path, Settings, EngineObserver, LoadPolicy], Awaitable[EngineProcess]]


class GenerationObserver(Protocol):
    """Receiver of a generation's events."""

    def on_open(self, generation: "Generation") -> None:
        """Note that the generation can answer requests."""

    def on_engine_death(self, generation: "Generation") -> None:
        """Note that an engine ended unexpectedly and is being replaced."""

    def on_crash_loop(self, generation: "Generation") -> None:
        """Note that so many engines ended in a short time that the bundle is probably faulty."""

    def on_closed(self, generation: "Generation") -> None:
        """Note that all requests of the generation are answered and its engine is being ended."""


class CrashCounter:
    """Ends of engines and failed starts within the last `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: deque[float] = deque()

    def add(self, now: float, excused: bool) -> int:
        """Count one end; return the number of ends. `excused`: a query is to blame, which ended two engines."""
        if not excused:
            self._times.append(now)
        elif self._times:
            self._times.pop()  # the first end by the same query
        while self._times and self._times[0] < now - self._seconds:
            self._times.popleft()
        return len(self._times)


class Generation:
    """One open bundle: its engine, its requests, and the replacement of an engine that dies.

    `choose_policy` returns how the generation's next engine is loaded.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        settings: Settings,
        *,
        metrics: Metrics,
        supervisor: Supervisor,
        paused: PausedBroadcaster,
        observer: GenerationObserver,
        choose_policy: Callable[["Generation"], LoadPolicy],
        start_engine: StartEngine = EngineProcess.start,
    ) -> None:
        self.number = number
        self.name = folder.name
        self.folder = folder  # used by the next engine; the folder of the running one may have been removed
        self.failure: str | None = None  # why no engine can be started; None while one runs or starts
        self.unknown_ids: list[str] | None = None  # paused ids that the bundle does not have; None: not reported yet
        self.query_identity = 0  # of the bundle, once an engine has opened it
        self.pause_version = 0  # version of the paused labels; requests sent after a list obey it
        self._settings = settings
        self._metrics = metrics
        self._supervisor = supervisor
        self._paused = paused
        self._observer = observer
        self._choose_policy = choose_policy
        self._start_engine = start_engine
        self._lifecycle = Lifecycle()
        self._engine: EngineProcess | None = None
        self._batcher: Batcher | None = None
        self._watchdog = Watchdog(settings.batch_seconds, self._on_hang)
        self._replacing: asyncio.Task[None] | None = None
        self._admitted_at = 0.0  # time of the last admitted request
        self._opened_at = 0.0  # loop time when the last engine opened
        self._crashes = CrashCounter(settings.crash_seconds)
        self._is_excused = False  # whether a query caused the last end, and not the bundle
        self._pending_acks = 0  # lists of paused labels that the engine has not acknowledged
        self._acknowledged = asyncio.Event()

    async def open(self) -> Self:
        """Start the engine and wait until it can answer. Raises BundleError."""
        try:
            await self._attach_new_engine()
        except BaseException:
            self._lifecycle.advance(State.CLOSED)
            raise
        self._lifecycle.advance(State.SERVING)
        self._paused.subscribe(self.send_paused)
        self._observer.on_open(self)
        return self

    @property
    def state(self) -> State:
        return self._lifecycle.state

    @property
    def info(self) -> BundleInfo | None:
        """The engine's description of the bundle; None while there is no engine."""
        return self._engine.info if self._engine else None

    @property
    def engine(self) -> int | None:
        """Process id of the engine; None while there is no engine."""
        return self._engine.pid if self._engine else None

    @property
    def unfinished(self) -> int:
        """Number of requests that are not answered."""
        return self.batcher.unfinished

    @property
    def healthy(self) -> bool:
        """Whether an engine can answer."""
        return self.info is not None and self.failure is None

    @property
    def batcher(self) -> Batcher:
        if self._batcher is None:
            raise RuntimeError(f"generation {self.number} has no batcher before it is open")
        return self._batcher

    def admit(self, query: Query, seconds: float | None = None, caller: Caller = ANYONE) -> PendingRequest:
        """Queue a request for at most `seconds`. Raises Refusal 422, 429 or 503."""
        if self.failure:
            raise errors.unavailable(f"Bundle {self.name} cannot be served at the moment; /readyz has the reason.")
        self._admitted_at = perf_counter()
        return self.batcher.admit(query, seconds, caller)

    def is_busy(self) -> bool:
        """Return whether requests are pending or one was admitted within the last 0.1 s."""
        return self.healthy and (self.unfinished > 0 or perf_counter() - self._admitted_at < RECENT_SECONDS)

    def send_paused(self) -> None:
        """Send the paused labels to the engine. Batches sent afterwards are answered without them."""
        self.pause_version += 1
        self._acknowledged.clear()
        if self._engine:
            self._pending_acks += 1
            self._engine.send(encode_paused(self._paused.ids))

    async def wait_for_unknown_ids(self, seconds: float) -> list[str] | None:
        """Return the paused ids that the bundle does not have; None when the engine does not report them in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._acknowledged.wait()
        except TimeoutError:
            return None
        return self.unknown_ids

    def drain_to(self, successor: "Generation") -> None:
        """Move the unanswered requests to another generation."""
        self.batcher.drain_to(successor.batcher)

    async def close(self) -> None:
        """Answer the admitted requests, then end the engine. Call it again if it raises."""
        if self.state is State.SERVING:
            self._lifecycle.advance(State.DRAINING)
        if self.state is State.DRAINING:
            await self._drain()
            self._paused.unsubscribe(self.send_paused)
            self._observer.on_closed(self)
            self._lifecycle.advance(State.CLOSED)
        if self._replacing:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        self._watchdog.update(None)
        if self._engine:
            await self._engine.end()

    def on_answers(self, batch: BatchAnswers) -> None:
        """Deliver the answers of a batch."""
        self.batcher.on_answers(batch)
        self._watchdog.update(self.batcher.oldest)

    def on_paused(self, unknown_ids: list[str]) -> None:
        """Note that the engine obeys a list of paused labels."""
        self._pending_acks -= 1
        if not self._pending_acks:
            self.unknown_ids = unknown_ids
            self._acknowledged.set()

    def on_engine_death(self) -> None:
        """Replace the engine, and put its requests back into the queue."""
        dead, self._engine = self._engine, None
        self._watchdog.update(None)
        self._observer.on_engine_death(self)
        self._replacing = self._supervisor.retry("engine_replacement", partial(self._replace, dead))
        self._is_excused = self.batcher.on_engine_death()

    async def _drain(self) -> None:
        """Wait until all admitted requests are answered; refuse those that take too long."""
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self.batcher.drained()
        except TimeoutError:
            LOG.warning("%d requests of bundle %s were still unfinished", self.unfinished, self.name)
            self.batcher.refuse_all(errors.unavailable("The service stopped before this request was answered."))

    def _on_hang(self) -> None:
        LOG.error("the engine of bundle %s has not answered for %g s", self.name, self._settings.batch_seconds)
        if self._engine:
            self._engine.kill()

    async def _replace(self, dead: EngineProcess | None) -> None:
        """Start engines until one answers. The supervisor retries it after an unexpected exception."""
        longest, lived = LONGEST_RESTART_BACKOFF, asyncio.get_running_loop().time() - self._opened_at
        if dead:
            await dead.end()
            reason = dead.exit_reason
            LOG.error("the engine of bundle %s (process %d) ended %s; starting another", self.name, dead.pid, reason)
        while self.state is not State.CLOSED:
            crashes = self._count_crash()
            if crashes > 1:
                backoff = min(FIRST_RESTART_BACKOFF * 2 ** (crashes - 2), longest)
                await asyncio.sleep(max(backoff - lived, 0))
            try:
                await self._attach_new_engine()
            except (DiptychError, OSError) as error:
                self.failure, longest, lived = str(error), LONGEST_RETRY_BACKOFF, 0.0
                LOG.error("bundle %s: %s", self.name, error)
            except Exception as error:
                self.failure = f"no engine can be started for bundle {self.name} ({describe_error(error)})"
                raise
            else:
                self.failure = None
                return

    def _count_crash(self) -> int:
        """Count the end of an engine; return the number of recent ends, and report too many."""
        crashes = self._crashes.add(asyncio.get_running_loop().time(), self._is_excused)
        self._is_excused = False
        if crashes >= self._settings.crashes:
            self._observer.on_crash_loop(self)
        return crashes

    async def _attach_new_engine(self) -> None:
        engine = await self._start_engine(self.folder, self._settings, self, self._choose_policy(self))
        try:
            self._attach(engine)
        except BaseException:
            self._engine = None
            await engine.end()
            raise

    def _attach(self, engine: EngineProcess) -> None:
        self._engine = engine
        info = engine.info
        self.query_identity = info.query_identity
        if self._batcher is None:
            estimator = TokenEstimator(1 / info.bytes_per_token, info.max_tokens, info.padded)
            self._batcher = Batcher(
                self.name, self._settings, self._metrics, estimator, query_identity=info.query_identity
            )
        self._opened_at = asyncio.get_running_loop().time()
        self._pending_acks = 0
        self.send_paused()  # before the first batch
        self.batcher.attach(self._send, info.worker_threads)

    def _send(self, batch: bytes) -> None:
        if self._engine:
            self._engine.send(batch)
        self._watchdog.update(self.batcher.oldest)
