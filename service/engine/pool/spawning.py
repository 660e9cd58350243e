"""Start the process of an engine, or of a host that forks engines; wait for its end, kill it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from retrieval.errors import BundleError
from retrieval.sandboxed_opening import warn_of_missing
from retrieval.system.limits import available_cores
from retrieval.system.sandbox import SANDBOX, child_environment, data_limit, folder_bytes, missing
from service.engine.options import EngineOptions
from service.observe import logs
from service.observe.detached_thread import run_detached
from service.settings import Settings

# Batches are small: a second core for tokenization, or for a product of thin matrices, costs more than it saves.
SINGLE_THREADED = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # a process with threads cannot be forked safely
POLL_SECONDS = 0.01  # between two checks whether a process has ended; a waiting thread might not be available


class CannotStart(BundleError):
    """The system temporarily has no process, descriptor or memory for an engine."""


class Child(Protocol):
    """A process that the front ends."""

    @property
    def pid(self) -> int: ...

    def kill(self) -> None:
        """Kill the process."""

    async def has_ended(self, seconds: float) -> bool:
        """Wait until the process has ended; return whether it did within `seconds`."""

    @property
    def exit_reason(self) -> str:
        """The signal or exit code that the process ended with, as a phrase."""


class SpawnedChild:
    """A child process of the front."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_reason(self) -> str:
        return describe_exit(self._process.returncode)

    def kill(self) -> None:
        self._process.kill()

    async def has_ended(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._process.poll() is None:
            if loop.time() > deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True


async def spawn(
    folder: Path,
    settings: Settings,
    pipe: socket.socket,
    low_priority: bool,
    *,
    shared: bool = False,
    index_sockets: tuple[int, ...] = (),
) -> SpawnedChild:
    """Start an engine on a bundle's folder, or with `shared` a host. Raises BundleError and OSError.

    `index_sockets` are descriptors of sockets to the process that searches Milvus for the engine.
    """
    _check_sandbox(settings)
    async with asyncio.timeout(settings.load_seconds):  # in a thread: a network file system may not respond
        limits = await run_detached(lambda: (data_limit(folder), folder_bytes(folder)))
    return SpawnedChild(_spawn(folder, settings, pipe, low_priority, limits, shared, index_sockets))


def describe_exit(code: int | None) -> str:
    """Return the signal or exit code of an ended process as a phrase."""
    if code is None or code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:  # real-time signals have no names
        return f"by signal {-code}"


def _spawn(
    folder: Path,
    settings: Settings,
    pipe: socket.socket,
    low_priority: bool,
    limits: tuple[int, int],
    shared: bool,
    index_sockets: tuple[int, ...],
) -> subprocess.Popen[bytes]:
    """Start the process; `limits` are the bytes of memory and of a file that it may use. Raises OSError.

    Call it in the main thread: the kernel ends the engine when the thread that started it ends.
    """
    data_bytes, file_bytes = limits
    options = EngineOptions(
        low_priority=low_priority,
        provider=settings.provider,
        threads=settings.threads or (max(1, available_cores() // settings.engines) if settings.engines > 1 else None),
        search_threads=settings.search_threads,
        worker_threads=settings.worker_threads,
        largest_batch=settings.max_batch_queries,
        max_answer_bytes=settings.max_answer_bytes,
        trusted_keys=settings.trusted_keys,
        front_pid=os.getpid(),
        sandbox=settings.sandbox,
        data_bytes=data_bytes,
        file_bytes=file_bytes,
        shared=shared,
        index_sockets=index_sockets,
    )
    descriptor = pipe.fileno()
    command = [sys.executable, "-P", "-m", "service.engine.start", str(descriptor), str(folder), options.to_json()]
    environment = (
        child_environment() | SINGLE_THREADED | (NO_THREADS if shared else {}) | {logs.FORMAT: settings.log_format}
    )
    # In a separate process group: Ctrl-C in a terminal reaches only the front, which lets the engine finish.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[descriptor, *index_sockets], process_group=0
    )


def _check_sandbox(settings: Settings) -> None:
    """Check that the system has the required sandbox, and log once what it lacks. Raises BundleError."""
    if settings.sandbox == "required":
        lacks = missing() if settings.provider == "cpu" else ["an engine on a GPU is not confined"]
        if lacks:
            raise BundleError(f"no engine is started: {SANDBOX} is required, and {', '.join(lacks)}.")
    elif settings.sandbox == "auto":
        warn_of_missing()
