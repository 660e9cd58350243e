"""Which bundle is served: prepare → warm → switch → drain → close, and a replacement for an engine that died.

A request belongs to the generation that admitted it until it is answered, so no answer ever mixes two bundles.
"""

import asyncio
import logging
import time
from typing import Self

from retrieval.errors import BundleError, DiptychError
from retrieval.store import Store
from service import errors
from service.batching import Batcher, Ticket
from service.errors import Refusal
from service.frames import Answers, Asked
from service.metrics import Metrics
from service.process import EngineProcess, Opened
from service.schemas import ActivateResponse, Readiness
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
        self._batcher = Batcher(self._settings, self._metrics, 1 / self._engine.opened.bytes_per_token)
        self._batcher.attach(self._send)
        return self

    @property
    def opened(self) -> Opened | None:
        """What the engine said of the bundle; None while there is no engine."""
        return self._engine.opened if self._engine else None

    @property
    def batcher(self) -> Batcher:
        if self._batcher is None:
            raise RuntimeError(f"generation {self.number} is asked before it is open")
        return self._batcher

    def admit(self, asked: Asked) -> Ticket:
        """Queue a request. Raises Refusal 429 or 503."""
        if self.trouble:
            raise errors.unavailable(f"Bundle {self.name} cannot be served just now; /readyz says why.")
        return self.batcher.admit(asked)

    async def close(self) -> None:
        """Finish what was admitted, then end the engine."""
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self.batcher.drained()
        except TimeoutError:
            LOG.warning("%d requests of bundle %s were still unfinished", self.batcher.unfinished, self.name)
            self.batcher.give_up(errors.unavailable("The service stopped before this request was answered."))
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


class Generations:
    """The generation that is served, the one being prepared, and those that are draining."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.current: Generation | None = None
        self.stopping = False
        self._settings = settings
        self._metrics = metrics
        self._store = Store(settings.store.resolve())
        self._numbers = 0
        self._preparing: str | None = None
        self._change: asyncio.Task[Generation] | None = None
        self._failed: str | None = None  # why the last change of bundle did not happen
        self._closing: set[asyncio.Task[None]] = set()
        metrics.watch(lambda: self._depth("waiting_queries"), lambda: self._depth("unfinished"))

    async def open_active(self) -> Generation:
        """Serve the store's active bundle. Raises BundleError."""
        name = self._store.active()
        if name is None:
            known = ", ".join(self._store.bundles()) or "none yet"
            raise BundleError(
                f"{self._settings.store} has no active bundle (bundles: {known}). "
                "Export one with `diptych export CKPT --store STORE --activate`."
            )
        self._preparing = name
        try:
            generation = await self._prepare(name)
        except DiptychError as error:
            self._failed = f"bundle {name} could not be opened: {error}"
            raise
        finally:
            self._preparing = None
        self._serve(generation)
        return generation

    def admit(self, asked: Asked) -> tuple[Generation, Ticket]:
        """Queue a request with the generation of this moment, which will answer it. Raises Refusal 429 or 503."""
        if self.current is None:
            raise errors.unavailable(f"The service is not ready: {self.readiness().detail}.")
        return self.current, self.current.admit(asked)

    async def activate(self, name: str) -> ActivateResponse:
        """Serve another bundle, without a gap. On any failure the old one stays; raises Refusal saying why."""
        started = time.perf_counter()
        if self._preparing or self.stopping:
            why = f"bundle {self._preparing} is being prepared" if self._preparing else "the service is stopping"
            raise Refusal(409, "busy_switching", f"Bundle {name} was not activated: {why}.")
        before = self.current
        self._preparing = name
        self._change = asyncio.create_task(self._change_to(name))
        try:
            generation = await self._change
        except (DiptychError, OSError) as error:
            raise self._not_activated(name, error) from error
        except asyncio.CancelledError as error:
            raise Refusal(
                409, "busy_switching", f"Bundle {name} was not activated: the service is stopping."
            ) from error
        finally:
            self._preparing = self._change = None
        self._failed = None
        self._metrics.switches.labels("done").inc()
        seconds = time.perf_counter() - started
        self._metrics.switch_seconds.observe(seconds)
        LOG.info("bundle %s is served, after %.1f s", generation.name, seconds)
        previous = before.name if before else None
        return ActivateResponse(bundle=generation.name, previous=previous, seconds=round(seconds, 3))

    def readiness(self) -> Readiness:
        """Whether requests are answered, and what an operator should know."""
        obstacles = self._obstacles()
        notes = [f"bundle {self._preparing} is being prepared"] if self._preparing else []
        notes += [self._failed] if self._failed else []
        detail = "; ".join(self._public(note) for note in obstacles + notes) or "serving"
        return Readiness(ready=not obstacles, bundle=self.current.name if self.current else None, detail=detail)

    def stop(self) -> None:
        """From now on not ready, and no change of bundle; requests are still answered."""
        self.stopping = True
        if self._change:
            self._change.cancel()

    async def close(self) -> None:
        """Answer what was admitted, then end every engine."""
        if self.current:
            self._retire(self.current)
        if self._closing:
            await asyncio.wait(self._closing)

    def _obstacles(self) -> list[str]:
        """What keeps requests from being answered."""
        if self.stopping:
            return ["the service is stopping"]
        if self.current is None:
            return ["no bundle is open yet"]
        if self.current.trouble:
            return [self.current.trouble]
        return [] if self.current.opened else ["the engine ended and is being replaced"]

    async def _change_to(self, name: str) -> Generation:
        current = self.current
        if current and current.name == name and current.opened and not current.trouble:
            await asyncio.to_thread(self._store.activate, name)
            return current
        generation = await self._prepare(name)
        try:
            await asyncio.to_thread(self._store.activate, name)
        except BaseException:
            await generation.close()
            raise
        self._serve(generation)
        if current:
            self._retire(current)
        return generation

    async def _prepare(self, name: str) -> Generation:
        self._numbers += 1
        return await Generation(self._numbers, name, self._store, self._settings, self._metrics).open()

    def _serve(self, generation: Generation) -> None:
        self.current = generation
        self._metrics.serving(generation.name, generation.number)

    def _retire(self, generation: Generation) -> None:
        task = asyncio.create_task(generation.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _not_activated(self, name: str, error: Exception) -> Refusal:
        why = str(error) if isinstance(error, DiptychError) else f"the store cannot be used ({error})"
        self._failed = f"bundle {name} was not activated: {why}"
        self._metrics.switches.labels("failed").inc()
        LOG.error("%s", self._failed)
        status = 422 if (self._store.path / "bundles" / name).is_dir() else 404
        return Refusal(status, "not_activated", self._public(f"Bundle {name} was not activated: {why}"))

    def _public(self, text: object) -> str:
        """A sentence for a client: where the store lies on this machine is not a client's business."""
        place = str(self._store.path)
        return str(text).replace(f"{place}/", "").replace(place, "the store")

    def _depth(self, of: str) -> int:
        return getattr(self.current.batcher, of) if self.current else 0
