"""Run one engine process from the front: start it, wait until it is ready, exchange frames, end it."""

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Protocol, Self, cast

from retrieval.errors import BundleError
from retrieval.milvus.host import Host, start_host
from service.engine.cpu_throttle import CpuThrottle
from service.engine.load_policy import LoadPolicy
from service.engine.pool.host_process import BundleHost
from service.engine.pool.index_server import collection_of
from service.engine.pool.spawning import CannotStart, Child, spawn
from service.engine.protocol import (
    AnswerParts,
    BatchAnswers,
    BundleInfo,
    FrameKind,
    FrameSplitter,
    decode_answers,
    decode_info,
    decode_part,
    decode_paused,
)
from service.settings import Settings

LOG = logging.getLogger("diptych")
END_SECONDS = 5.0  # an engine that has not ended by then is killed


class EngineObserver(Protocol):
    """Receiver of an engine's messages."""

    def on_answers(self, batch: BatchAnswers) -> None:
        """Receive the answers of one batch."""

    def on_paused(self, unknown_ids: list[str]) -> None:
        """Receive the acknowledgement of paused labels, with the ids that the bundle does not have."""

    def on_engine_death(self) -> None:
        """Note that the process ended unexpectedly. Called once."""


class EngineProcess(asyncio.Protocol):
    """One running engine."""

    def __init__(self, folder: Path, observer: EngineObserver) -> None:
        self._folder = folder
        self._observer = observer
        self._frames = FrameSplitter()
        self._parts = AnswerParts()
        self._ready: asyncio.Future[BundleInfo] = asyncio.get_running_loop().create_future()
        self._is_ending = self._is_started = self._is_disconnected = False
        self._transport: asyncio.WriteTransport | None = None
        self._child: Child | None = None
        self.host: BundleHost | None = None  # the process that forked it, if one did
        self._index_host: Host | None = None  # searches Milvus for the engine, which has no network

    @classmethod
    async def start(
        cls,
        folder: Path,
        settings: Settings,
        observer: EngineObserver,
        policy: LoadPolicy,
        host: BundleHost | None = None,
    ) -> Self:
        """Start an engine on a bundle's folder and wait until it can answer. Raises BundleError.

        `host` has loaded the bundle and forks the engine.
        """
        engine = cls(folder, observer)
        engine.host = host
        try:
            await engine._start_connected(settings, policy.low_priority)
            with CpuThrottle(engine.pid, policy) as throttle:
                await throttle.wait(engine._ready, settings.load_seconds)
            engine._ready.result()
            if engine._is_disconnected:
                raise engine._ended_early()
        except TimeoutError as error:
            await engine.end()
            raise BundleError(f"{folder.name} was not ready within {settings.load_seconds:g} s.") from error
        except OSError as error:
            await engine.end()
            message = f"no process can be started for bundle {folder.name} ({error.strerror or error})"
            raise CannotStart(message) from error
        except BaseException:
            await engine.end()
            raise
        engine._is_started = True
        return engine

    @property
    def info(self) -> BundleInfo:
        """Description of the opened bundle."""
        return self._ready.result()

    @property
    def pid(self) -> int:
        return cast(Child, self._child).pid

    @property
    def exit_reason(self) -> str:
        """The signal or exit code that the process ended with, as a phrase."""
        return cast(Child, self._child).exit_reason

    def counts_as_crash(self) -> bool:
        """Return whether its end is a crash of its own. A host that ends is one crash, although its engines end too."""
        if self.host is None or not self.host.has_ended:
            return True
        is_first, self.host.is_counted = not self.host.is_counted, True
        return is_first

    def send(self, frame: bytes) -> None:
        """Send a frame. It is silently dropped if the engine is exiting; `on_engine_death` follows."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(frame)

    def kill(self) -> None:
        """Kill the process; `on_engine_death` follows."""
        if self._child:
            self._child.kill()

    async def end(self) -> None:
        """Let the engine finish its batches, then wait until the process has ended."""
        self._is_ending = True
        if not self._ready.done():
            self._ready.cancel()
            self.kill()  # it may load for minutes before it reads its pipe
        if self._transport:
            self._transport.close()
        if self._child and not await self._child.has_ended(END_SECONDS):
            self._child.kill()
            if not await self._child.has_ended(END_SECONDS):
                LOG.error("process %d of bundle %s was killed and does not end", self.pid, self._folder.name)
        if self._index_host:
            self._index_host.close()

    async def _start_connected(self, settings: Settings, low_priority: bool) -> None:
        """Start the process and connect to its pipe. Raises BundleError and OSError, TimeoutError included."""
        front_end, engine_end = socket.socketpair()
        try:
            with engine_end:
                if self.host:
                    self._child = await self.host.fork(engine_end)
                else:
                    self._child = await self._spawn(settings, engine_end, low_priority)
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=front_end)
        except BaseException:
            front_end.close()
            raise

    async def _spawn(self, settings: Settings, pipe: socket.socket, low_priority: bool) -> Child:
        """Start a process that loads the bundle itself, and one that searches Milvus for it if the index is there."""
        collection = await collection_of(self._folder, settings)
        if collection is None:
            return await spawn(self._folder, settings, pipe, low_priority)
        self._index_host = start_host(collection, environment={**os.environ, **settings.milvus_variables})
        sockets = tuple(self._index_host.descriptors)
        child = await spawn(self._folder, settings, pipe, low_priority, index_sockets=sockets)
        self._index_host.close_sockets()  # so that it ends with the engine
        return child

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, payload in self._frames.feed(data):
                self._receive(kind, payload)
        except Exception:
            self.kill()  # the rest of the stream cannot be trusted
            raise

    def connection_lost(self, error: Exception | None) -> None:
        self._is_disconnected = True
        if not self._ready.done():
            self._ready.set_exception(self._ended_early())
        elif self._is_started and not self._is_ending:
            self._observer.on_engine_death()

    def _ended_early(self) -> BundleError:
        return BundleError(f"the engine for {self._folder.name} ended while it was being started")

    def _receive(self, kind: FrameKind, payload: bytes) -> None:
        if kind is FrameKind.ANSWERS:
            self._observer.on_answers(self._parts.complete(decode_answers(payload)))
        elif kind is FrameKind.PART:
            self._parts.add(decode_part(payload))
        elif kind is FrameKind.PAUSED:
            self._observer.on_paused(decode_paused(payload))
        elif kind is FrameKind.READY:
            self._ready.set_result(decode_info(payload))
        elif kind is FrameKind.FAILED:
            self._ready.set_exception(BundleError(payload.decode()))
        else:
            raise ValueError(f"an engine sent a frame of kind {kind.name}")
