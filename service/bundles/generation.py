"""One open bundle: its engines, its requests, and the replacement of an engine that died or hangs."""

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
from service.engine.pool.slot import EngineSlot
from service.engine.pool.starter import EngineStarter
from service.engine.protocol import BatchAnswers, BundleInfo, Query
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
    """One open bundle: its engines, its requests, and the replacement of an engine that dies.

    Several engines take batches from one queue.

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
        start_engine: StartEngine | None = None,
    ) -> None:
        self.number = number
        self.name = folder.name
        self.folder = folder  # used by the next engine; the folder of the running one may have been removed
        self.failure: str | None = None  # why no engine can be started; None while one runs or starts
        self.query_identity = 0  # of the bundle, once an engine has opened it
        self.pause_version = 0  # version of the paused labels; requests sent after a list obey it
        self._settings = settings
        self._metrics = metrics
        self._supervisor = supervisor
        self._paused = paused
        self._observer = observer
        self._choose_policy = choose_policy
        self._starter = EngineStarter()
        self._start_engine = start_engine or self._starter.start
        self._lifecycle = Lifecycle()
        self._slots = [EngineSlot(place, self, settings.batch_seconds) for place in range(settings.engines)]
        self._batcher: Batcher | None = None
        self._admitted_at = 0.0  # time of the last admitted request
        self._crashes = CrashCounter(settings.crash_seconds)
        self._acknowledged = asyncio.Event()

    async def open(self) -> Self:
        """Start the engines and wait until all can answer. Raises BundleError."""
        try:
            await self._open_slots()
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
        """An engine's description of the bundle; None while there is no engine."""
        return next((slot.engine.info for slot in self._slots if slot.engine), None)

    @property
    def engines(self) -> list[int]:
        """Process ids of its processes: the engines that run, and their host if there are several."""
        return [slot.engine.pid for slot in self._slots if slot.engine] + self._starter.pids

    @property
    def shortage(self) -> str | None:
        """A note for the operator while some engines answer and others are being replaced."""
        running = sum(slot.engine is not None for slot in self._slots)
        if running in (0, len(self._slots)):
            return None
        return f"{running} of {len(self._slots)} engines of bundle {self.name} answer; others are being replaced"

    @property
    def unknown_ids(self) -> list[str] | None:
        """Paused ids that the bundle does not have; None: no engine has reported them."""
        return next((slot.unknown_ids for slot in self._slots if slot.engine and slot.unknown_ids is not None), None)

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
        """Send the paused labels to the engines. Batches sent afterwards are answered without them."""
        self.pause_version += 1
        self._acknowledged.clear()
        for slot in self._slots:
            slot.send_paused(self._paused.ids)

    async def wait_for_unknown_ids(self, seconds: float) -> list[str] | None:
        """Return the paused ids that the bundle does not have; None when an engine does not report them in time."""
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
        await asyncio.gather(*(slot.close() for slot in self._slots))
        await self._starter.close()

    def on_answers(self, slot: EngineSlot, batch: BatchAnswers) -> None:
        """Deliver the answers of a batch."""
        self.batcher.on_answers(batch, slot.number)
        slot.watch(self.batcher.oldest(slot.number))

    def on_paused(self, slot: EngineSlot) -> None:
        """Note that an engine obeys the last list of paused labels."""
        if all(one.obeys_paused for one in self._slots):
            self._acknowledged.set()

    def on_engine_death(self, slot: EngineSlot, dead: EngineProcess | None) -> None:
        """Replace the engine, and put its requests back into the queue."""
        self._observer.on_engine_death(self)
        slot.replacing = self._supervisor.retry("engine_replacement", partial(self._replace, slot, dead))
        if self._batcher:  # else the generation is being opened
            slot.is_excused = self._batcher.on_engine_death(slot.number)

    async def _drain(self) -> None:
        """Wait until all admitted requests are answered; refuse those that take too long."""
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self.batcher.drained()
        except TimeoutError:
            LOG.warning("%d requests of bundle %s were still unfinished", self.unfinished, self.name)
            self.batcher.refuse_all(errors.unavailable("The service stopped before this request was answered."))

    async def _open_slots(self) -> None:
        """Start all engines; end all of them if one cannot be started. Raises BundleError."""
        starts = [self._supervisor.start("engine_opening", self._attach_new_engine(slot)) for slot in self._slots]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await asyncio.gather(*(slot.close() for slot in self._slots))
            await self._starter.close()
            raise

    async def _replace(self, slot: EngineSlot, dead: EngineProcess | None) -> None:
        """Start engines until one answers. The supervisor retries it after an unexpected exception."""
        longest, lived = LONGEST_RESTART_BACKOFF, asyncio.get_running_loop().time() - slot.opened_at
        counts = True
        if dead:
            await dead.end()
            reason, counts = dead.exit_reason, dead.counts_as_crash()
            LOG.error("the engine of bundle %s (process %d) ended %s; starting another", self.name, dead.pid, reason)
        while self.state is not State.CLOSED:
            crashes = self._count_crash(slot) if counts else 1
            counts = True
            if crashes > 1:
                backoff = min(FIRST_RESTART_BACKOFF * 2 ** (crashes - 2), longest)
                await asyncio.sleep(max(backoff - lived, 0))
            try:
                await self._attach_new_engine(slot)
            except (DiptychError, OSError) as error:
                self._note_failure(str(error))
                longest, lived = LONGEST_RETRY_BACKOFF, 0.0
                LOG.error("bundle %s: %s", self.name, error)
            except Exception as error:
                self._note_failure(f"no engine can be started for bundle {self.name} ({describe_error(error)})")
                raise
            else:
                self.failure = None
                return

    def _note_failure(self, failure: str) -> None:
        """Note why an engine cannot be started. Requests are refused only if no other engine runs."""
        self.failure = None if self.info else failure

    def _count_crash(self, slot: EngineSlot) -> int:
        """Count the end of an engine; return the number of recent ends, and report too many."""
        crashes = self._crashes.add(asyncio.get_running_loop().time(), slot.is_excused)
        slot.is_excused = False
        if crashes >= self._settings.crashes:
            self._observer.on_crash_loop(self)
        return crashes

    async def _attach_new_engine(self, slot: EngineSlot) -> None:
        engine = await self._start_engine(self.folder, self._settings, slot, self._choose_policy(self))
        try:
            self._attach(slot, engine)
        except BaseException:
            slot.engine = None
            await engine.end()
            raise

    def _attach(self, slot: EngineSlot, engine: EngineProcess) -> None:
        slot.set_engine(engine)
        info = engine.info
        self.query_identity = info.query_identity
        if self._batcher is None:
            estimator = TokenEstimator(1 / info.bytes_per_token, info.max_tokens, info.padded)
            self._batcher = Batcher(
                self.name, self._settings, self._metrics, estimator, query_identity=info.query_identity
            )
        self.pause_version += 1
        self._acknowledged.clear()
        slot.send_paused(self._paused.ids)  # before the first batch
        self.batcher.attach(lambda batch: self._send(slot, batch), info.worker_threads, slot.number)

    def _send(self, slot: EngineSlot, batch: bytes) -> None:
        slot.send(batch, self.batcher.oldest(slot.number))
