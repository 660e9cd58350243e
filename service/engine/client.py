"""Run one engine process from the front: start it, wait until it is ready, exchange frames, end it."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol, Self, cast

from retrieval.bundle.manifest import read_manifest
from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import BundleError
from retrieval.milvus.collection import collection_name
from retrieval.milvus.host import Host, start_host
from retrieval.sandboxed_opening import warn_of_missing
from retrieval.system.sandbox import SANDBOX, child_environment, data_limit, folder_bytes, missing
from service.engine.cpu_throttle import CpuThrottle
from service.engine.load_policy import LoadPolicy
from service.engine.options import EngineOptions
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
from service.observe import logs
from service.observe.detached_thread import run_detached
from service.settings import Settings

LOG = logging.getLogger("diptych")
# Batches are small: a second core for tokenization, or for a product of thin matrices, costs more than it saves.
SINGLE_THREADED = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
END_SECONDS = 5.0  # an engine that has not ended by then is killed
POLL_SECONDS = 0.01  # between two checks whether a process has ended; a waiting thread might not be available


class CannotStart(BundleError):
    """The system temporarily has no process, descriptor or memory for an engine."""


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
        self._process: subprocess.Popen[bytes] | None = None
        self._host: Host | None = None  # searches Milvus for the engine, which has no network

    @classmethod
    async def start(cls, folder: Path, settings: Settings, observer: EngineObserver, policy: LoadPolicy) -> Self:
        """Start an engine on a bundle's folder and wait until it can answer. Raises BundleError."""
        engine = cls(folder, observer)
        try:
            await engine._spawn_connected(settings, policy.low_priority)
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
        return cast(subprocess.Popen[bytes], self._process).pid

    @property
    def exit_reason(self) -> str:
        """The signal or exit code that the process ended with, as a phrase."""
        code = cast(subprocess.Popen[bytes], self._process).returncode
        if code is None or code >= 0:
            return f"with exit code {code}"
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:  # real-time signals have no names
            return f"by signal {-code}"

    def send(self, frame: bytes) -> None:
        """Send a frame. It is silently dropped if the engine is exiting; `on_engine_death` follows."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(frame)

    def kill(self) -> None:
        """Kill the process; `on_engine_death` follows."""
        if self._process:
            self._process.kill()

    async def end(self) -> None:
        """Let the engine finish its batches, then wait until the process has ended."""
        self._is_ending = True
        if not self._ready.done():
            self._ready.cancel()
            self.kill()  # it may load for minutes before it reads its pipe
        if self._transport:
            self._transport.close()
        if self._process and not await self._has_ended(END_SECONDS):
            self._process.kill()
            if not await self._has_ended(END_SECONDS):
                LOG.error("process %d of bundle %s was killed and does not end", self.pid, self._folder.name)
        if self._host:
            self._host.close()

    async def _spawn_connected(self, settings: Settings, low_priority: bool) -> None:
        """Start the process and connect to its pipe. Raises BundleError and OSError, TimeoutError included."""
        _check_sandbox(settings)
        async with asyncio.timeout(settings.load_seconds):  # in a thread: a network file system may not respond
            limits = await run_detached(lambda: (data_limit(self._folder), folder_bytes(self._folder)))
            collection = await run_detached(lambda: _collection(self._folder, settings))
        front_end, engine_end = socket.socketpair()
        try:
            with engine_end:
                if collection is not None:
                    self._host = start_host(collection, environment={**os.environ, **settings.milvus_variables})
                sockets = () if self._host is None else tuple(self._host.descriptors)
                self._process = _spawn(self._folder, settings, engine_end, low_priority, limits, sockets)
                if self._host is not None:
                    self._host.close_sockets()  # so that it ends with the engine
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=front_end)
        except BaseException:
            front_end.close()
            raise

    async def _has_ended(self, seconds: float) -> bool:
        """Wait until the process has ended; return whether it did within `seconds`."""
        process, loop = cast(subprocess.Popen[bytes], self._process), asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while process.poll() is None:
            if loop.time() > deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

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


def _spawn(
    folder: Path,
    settings: Settings,
    pipe: socket.socket,
    low_priority: bool,
    limits: tuple[int, int],
    index_sockets: tuple[int, ...],
) -> subprocess.Popen[bytes]:
    """Start the process; `limits` are the bytes of memory and of a file that it may use. Raises OSError.

    Call it in the main thread: the kernel ends the engine when the thread that started it ends.
    """
    data_bytes, file_bytes = limits
    options = EngineOptions(
        low_priority=low_priority,
        provider=settings.provider,
        threads=settings.threads,
        search_threads=settings.search_threads,
        worker_threads=settings.worker_threads,
        largest_batch=settings.max_batch_queries,
        max_answer_bytes=settings.max_answer_bytes,
        trusted_keys=settings.trusted_keys,
        front_pid=os.getpid(),
        sandbox=settings.sandbox,
        data_bytes=data_bytes,
        file_bytes=file_bytes,
        index_sockets=index_sockets,
    )
    descriptor = pipe.fileno()
    command = [sys.executable, "-P", "-m", "service.engine.start", str(descriptor), str(folder), options.to_json()]
    environment = child_environment() | SINGLE_THREADED | {logs.FORMAT: settings.log_format}
    # In a separate process group: Ctrl-C in a terminal reaches only the front, which lets the engine finish.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[descriptor, *index_sockets], process_group=0
    )


def _collection(folder: Path, settings: Settings) -> str | None:
    """Return the collection of a bundle whose index is in Milvus; None for another one. Raises BundleError."""
    manifest = read_manifest(folder, trusted_keys(settings.trusted_keys))
    if manifest.graph is None or manifest.graph.kind != "milvus":
        return None
    if not settings.milvus_url:
        raise BundleError(f"the index of {folder.name} is in Milvus. Set DIPTYCH_MILVUS_URL to the server's address.")
    return collection_name(manifest, settings.milvus_prefix)


def _check_sandbox(settings: Settings) -> None:
    """Check that the system has the required sandbox, and log once what it lacks. Raises BundleError."""
    if settings.sandbox == "required":
        lacks = missing() if settings.provider == "cpu" else ["an engine on a GPU is not confined"]
        if lacks:
            raise BundleError(f"no engine is started: {SANDBOX} is required, and {', '.join(lacks)}.")
    elif settings.sandbox == "auto":
        warn_of_missing()
