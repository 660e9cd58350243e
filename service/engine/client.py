"""Run one engine process from the front: start it, wait until it is ready, exchange frames, end it."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

from pydantic_core import from_json

from retrieval.errors import BundleError
from retrieval.sandboxed_opening import warn_of_missing
from retrieval.system.sandbox import SANDBOX, child_environment, data_limit, folder_bytes, missing
from service.batching.pending_request import Lengths
from service.engine.cpu_throttle import Ration, Traffic, no_traffic
from service.engine.options import Orders
from service.engine.protocol import Answers, Kind, Parts, Splitter, unpack_answers
from service.observe import logs
from service.observe.detached_thread import run_detached
from service.settings import Settings

LOG = logging.getLogger("diptych")
# Batches are small: a second core for their tokens, or for a product of thin matrices, costs more than it gives.
SINGLE_THREADED = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
END_SECONDS = 5.0  # an engine that has not ended by then is killed
POLL_SECONDS = 0.01  # between two checks whether a process has ended; a waiting thread might not be available


class CannotStart(BundleError):
    """The system temporarily has no process, descriptor or memory for an engine."""


class Opened(NamedTuple):
    """Description of the bundle, sent by a ready engine."""

    labels: int
    dim: int
    bytes_per_token: float
    max_tokens: int
    padded: bool
    lanes: int
    seconds: float
    weight: float  # default weight of the classifier
    attributes: list[dict[str, Any]]  # filterable attributes of the labels, see facets.py

    @property
    def lengths(self) -> Lengths:
        """Token lengths of texts in this bundle's encoder."""
        return Lengths(1 / self.bytes_per_token, self.max_tokens, self.padded)


class EngineProcess(asyncio.Protocol):
    """One running engine.

    `on_answers` gets the answers of each batch, and `on_paused` the paused ids that the bundle does not have.
    `on_death` is called once if the process ends unexpectedly.
    """

    def __init__(
        self,
        folder: Path,
        on_answers: Callable[[Answers], None],
        on_death: Callable[[], None],
        on_paused: Callable[[list[str]], None],
    ) -> None:
        self._folder = folder
        self._on_answers = on_answers
        self._on_death = on_death
        self._on_paused = on_paused
        self._frames = Splitter()
        self._parts = Parts()
        self._ready: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._ending = self._started = self._lost = False
        self._transport: asyncio.WriteTransport | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def start(
        cls,
        folder: Path,
        settings: Settings,
        on_answers: Callable[[Answers], None],
        on_death: Callable[[], None],
        on_paused: Callable[[list[str]], None],
        beside: Traffic | None = None,
    ) -> Self:
        """Start an engine on a bundle's folder and wait until it can answer. Raises BundleError.

        With traffic `beside` it, it loads at low priority, and only for a share of the time while requests arrive.
        """
        engine = cls(folder, on_answers, on_death, on_paused)
        try:
            await engine._spawn_connected(settings, beside is not None)
            with Ration(engine.pid, settings.load_share, beside or no_traffic) as ration:
                await ration.wait(engine._ready, settings.load_seconds)
            engine._ready.result()
            if engine._lost:
                raise engine._ended_early()
        except TimeoutError as error:
            await engine.end()
            raise BundleError(f"{folder.name} was not ready within {settings.load_seconds:g} s.") from error
        except OSError as error:
            await engine.end()
            why = f"no process can be started for bundle {folder.name} ({error.strerror or error})"
            raise CannotStart(why) from error
        except BaseException:
            await engine.end()
            raise
        engine._started = True
        return engine

    @property
    def opened(self) -> Opened:
        return self._ready.result()

    @property
    def pid(self) -> int:
        return cast(subprocess.Popen[bytes], self._process).pid

    @property
    def how(self) -> str:
        """The signal or exit code that the process ended with, as a phrase."""
        code = cast(subprocess.Popen[bytes], self._process).returncode
        if code is None or code >= 0:
            return f"with exit code {code}"
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:  # real-time signals have no names
            return f"by signal {-code}"

    def send(self, frame: bytes) -> None:
        """Send a frame. It is silently dropped if the engine is exiting; `on_death` follows."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(frame)

    def kill(self) -> None:
        """Kill the process; `on_death` follows."""
        if self._process:
            self._process.kill()

    async def end(self) -> None:
        """Let the engine finish its batches, then wait until the process has ended."""
        self._ending = True
        if not self._ready.done():
            self._ready.cancel()
            self.kill()  # it may load for minutes before it reads its pipe
        if self._transport:
            self._transport.close()
        if self._process and not await self._ended(END_SECONDS):
            self._process.kill()
            if not await self._ended(END_SECONDS):
                LOG.error("process %d of bundle %s was killed and does not end", self.pid, self._folder.name)

    async def _spawn_connected(self, settings: Settings, behind: bool) -> None:
        """Start the process and connect to its pipe. Raises BundleError and OSError, TimeoutError included."""
        _check_sandbox(settings)
        async with asyncio.timeout(settings.load_seconds):  # in a thread: a network file system may not respond
            limits = await run_detached(lambda: (data_limit(self._folder), folder_bytes(self._folder)))
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _spawn(self._folder, settings, theirs, behind, limits)
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            raise

    async def _ended(self, seconds: float) -> bool:
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
                self._received(kind, payload)
        except Exception:
            self.kill()  # the rest of the stream cannot be trusted
            raise

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if not self._ready.done():
            self._ready.set_exception(self._ended_early())
        elif self._started and not self._ending:
            self._on_death()

    def _ended_early(self) -> BundleError:
        return BundleError(f"the engine for {self._folder.name} ended while it was being started")

    def _received(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.ANSWERS:
            self._on_answers(self._parts.complete(unpack_answers(payload)))
        elif kind is Kind.PART:
            self._parts.add(payload)
        elif kind is Kind.PAUSED:
            self._on_paused(from_json(payload))
        elif kind is Kind.READY:
            self._ready.set_result(Opened(*from_json(payload)))
        elif kind is Kind.FAILED:
            self._ready.set_exception(BundleError(payload.decode()))
        else:
            raise ValueError(f"an engine sent a frame of kind {kind.name}")


def _spawn(
    folder: Path, settings: Settings, theirs: socket.socket, behind: bool, limits: tuple[int, int]
) -> subprocess.Popen[bytes]:
    """Start the process; `limits` are the bytes of memory and of a file that it may use. Raises OSError.

    Call it in the main thread: the kernel ends the engine when the thread that started it ends.
    """
    orders = Orders(
        behind, settings.provider, settings.threads, settings.search_threads, settings.lanes,
        settings.max_batch_queries, settings.max_answer_bytes, settings.trusted_keys, os.getpid(), settings.sandbox,
        *limits,
    )  # fmt: skip
    command = [sys.executable, "-P", "-m", "service.engine.start", str(theirs.fileno()), str(folder), orders.written()]
    environment = child_environment() | SINGLE_THREADED | {logs.FORMAT: settings.log_format}
    # In a separate process group: Ctrl-C in a terminal reaches only the front, which lets the engine finish.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[theirs.fileno()], process_group=0
    )


def _check_sandbox(settings: Settings) -> None:
    """Check that the system has the required sandbox, and log once what it lacks. Raises BundleError."""
    if settings.sandbox == "required":
        lacks = missing() if settings.provider == "cpu" else ["an engine on a GPU is not confined"]
        if lacks:
            raise BundleError(f"no engine is started: {SANDBOX} is required, and {', '.join(lacks)}.")
    elif settings.sandbox == "auto":
        warn_of_missing()
