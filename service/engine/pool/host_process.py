"""Run a host from the front: a process that loads one bundle and forks the engines that share its memory."""

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self, cast

from retrieval.errors import BundleError
from service.engine.cpu_throttle import CpuThrottle
from service.engine.load_policy import LoadPolicy
from service.engine.pool.spawning import POLL_SECONDS, CannotStart, SpawnedChild, describe_exit, spawn
from service.engine.protocol import NUMBER, FrameKind, FrameSplitter, encode_frame
from service.settings import Settings

LOG = logging.getLogger("diptych")
END_SECONDS = 5.0  # a host that has not ended by then is killed
REPLY_SECONDS = 60.0  # that a host may take to fork; it does nothing else


class BundleHost(asyncio.Protocol):
    """A running host. Engines end with it."""

    def __init__(self, folder: Path) -> None:
        self.is_counted = False  # whether its unexpected end was counted as a crash of the bundle
        self._folder = folder
        self._frames = FrameSplitter()
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._replies: deque[asyncio.Future[bytes]] = deque()  # of the requests that the host has not answered
        self._is_disconnected = False
        self._control: socket.socket | None = None  # for requests; descriptors cannot be sent through a transport
        self._transport: asyncio.BaseTransport | None = None
        self._process: SpawnedChild | None = None

    @classmethod
    async def start(cls, folder: Path, settings: Settings, policy: LoadPolicy) -> Self:
        """Start a host on a bundle's folder and wait until it has loaded the bundle. Raises BundleError."""
        host = cls(folder)
        try:
            await host._spawn_connected(settings, policy.low_priority)
            with CpuThrottle(cast(SpawnedChild, host._process).pid, policy) as throttle:
                await throttle.wait(host._loaded, settings.load_seconds)
            host._loaded.result()
        except TimeoutError as error:
            await host.end()
            raise BundleError(f"{folder.name} was not loaded within {settings.load_seconds:g} s.") from error
        except OSError as error:
            await host.end()
            message = f"no process can be started for bundle {folder.name} ({error.strerror or error})"
            raise CannotStart(message) from error
        except BaseException:
            await host.end()
            raise
        return host

    @property
    def pid(self) -> int:
        return cast(SpawnedChild, self._process).pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, so that no engine can be forked."""
        return self._is_disconnected

    async def fork(self, pipe: socket.socket) -> "ForkedEngine":
        """Start an engine that uses this end of a pipe. Raises BundleError, OSError and TimeoutError."""
        (pid,) = NUMBER.unpack(await self._ask(encode_frame(FrameKind.FORK, b""), [pipe.fileno()]))
        return ForkedEngine(self, pid)

    async def reap(self, pid: int) -> int | None:
        """Return the exit code of an engine, or None while it runs. Raises BundleError, OSError and TimeoutError."""
        reply = await self._ask(encode_frame(FrameKind.REAP, NUMBER.pack(pid)))
        return cast(int, NUMBER.unpack(reply)[0]) if reply else None

    async def end(self) -> None:
        """End the process, and with it the engines that it forked."""
        if self._control:
            self._control.close()
            self._control = None
        if self._transport:
            self._transport.close()
        process = self._process
        if process is None:
            return
        if not self._loaded.done():
            self._loaded.cancel()
            process.kill()
        if not await process.has_ended(END_SECONDS):
            process.kill()
            if not await process.has_ended(END_SECONDS):
                LOG.error("process %d of bundle %s was killed and does not end", process.pid, self._folder.name)

    async def _spawn_connected(self, settings: Settings, low_priority: bool) -> None:
        """Start the process and connect to it. Raises BundleError and OSError, TimeoutError included."""
        front_end, host_end = socket.socketpair()
        try:
            with host_end:
                self._process = await spawn(self._folder, settings, host_end, low_priority, shared=True)
            self._control = front_end.dup()
            self._control.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=front_end)
        except BaseException:
            front_end.close()
            raise

    async def _ask(self, request: bytes, descriptors: list[int] | None = None) -> bytes:
        """Send a request and return the payload of its reply. Raises BundleError, OSError and TimeoutError."""
        if self._control is None or self._is_disconnected:
            raise self._has_ended_error()
        socket.send_fds(self._control, [request], descriptors or [])
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        async with asyncio.timeout(REPLY_SECONDS):
            return await reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for kind, payload in self._frames.feed(data):
            if kind is FrameKind.LOADED:
                self._loaded.set_result(None)
            elif kind is FrameKind.FAILED and not self._loaded.done():
                self._loaded.set_exception(BundleError(payload.decode()))
            else:
                self._receive_reply(kind, payload)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_disconnected = True
        if not self._loaded.done():
            self._loaded.set_exception(self._has_ended_error())
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(self._has_ended_error())
        self._replies.clear()

    def _receive_reply(self, kind: FrameKind, payload: bytes) -> None:
        reply = self._replies.popleft()
        if reply.done():  # cancelled
            if kind is FrameKind.FORKED:
                _kill(NUMBER.unpack(payload)[0])
        elif kind is FrameKind.FAILED:
            reply.set_exception(CannotStart(payload.decode()))
        else:
            reply.set_result(payload)

    def _has_ended_error(self) -> BundleError:
        return BundleError(f"the process that holds bundle {self._folder.name} has ended")


class ForkedEngine:
    """A process that a host has forked. The host keeps its process id until it is reaped."""

    def __init__(self, host: BundleHost, pid: int) -> None:
        self._host = host
        self._pid = pid
        self._is_reaped = False
        self._code: int | None = None  # None if the host ended first

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def exit_reason(self) -> str:
        if self._is_reaped and self._code is None:
            return "with the process that forked it"
        return describe_exit(self._code)

    def kill(self) -> None:
        if not (self._is_reaped or self._host.has_ended):  # else the id may belong to another process
            _kill(self._pid)

    async def has_ended(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not self._is_reaped:
                    self._code = await self._host.reap(self._pid)
                    self._is_reaped = self._code is not None
                    if not self._is_reaped:
                        await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return False
        except (BundleError, OSError):  # the host has ended, and the kernel kills its engines
            self._is_reaped = True
        return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
