"""Run a host: load one bundle without starting a thread, and fork the engines that share its memory.

A forked process has only the thread that called `fork`. So the host has a single thread: the engines start ONNX Runtime
and their thread pools. The front starts the host with `service.engine.start`; it ends when its pipe is closed, and
its engines end with it (docs/decisions/0101).
"""

import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from retrieval.errors import BundleError
from retrieval.system.sandbox import forbid_forks, sandbox_mode
from service.engine import worker
from service.engine.gc_tuning import freeze_gc
from service.engine.options import EngineOptions
from service.engine.parent_death import end_with_parent
from service.engine.protocol import HEAD, NUMBER, FrameKind, encode_frame

LOG = logging.getLogger("diptych.engine")
THREAD_SECONDS = 5.0  # that ended threads may take to disappear


def main(descriptor: int, folder: str, options: EngineOptions) -> int:
    """Load the bundle, report LOADED or FAILED, and fork engines until the front closes the pipe."""
    worker.prepare_process()
    control = socket.socket(fileno=descriptor)

    def load() -> worker.LoadedBundle:
        loaded = worker.load_bundle(Path(folder), options, deferred=True)
        check_threads()
        return loaded

    loaded = worker.or_failed(load, control, folder)
    if loaded is None:
        return 1
    freeze_gc()  # a collection in an engine would write to, and so copy, the pages of all objects
    with suppress(BrokenPipeError, ConnectionResetError):  # the front has ended
        control.sendall(encode_frame(FrameKind.LOADED, b""))
        while (request := _receive(control)) is not None:
            control.sendall(_answer(*request, control, loaded, folder, options))
    return 0


def check_threads(seconds: float = THREAD_SECONDS) -> None:
    """Check that this process has a single thread. Raises BundleError: an engine that is forked could hang."""
    deadline = time.monotonic() + seconds
    while len(threads := os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise BundleError(
                f"loading the bundle left {len(threads) - 1} threads running, so its process cannot be forked. Set "
                "DIPTYCH_ENGINES=1."
            )
        time.sleep(0.001)


def _receive(control: socket.socket) -> tuple[FrameKind, bytes, int | None] | None:
    """Return kind, payload and descriptor of the next request; None at the end."""
    head, descriptors, _, _ = socket.recv_fds(control, HEAD.size, 1)
    if len(head) < HEAD.size:
        return None
    size, kind = HEAD.unpack(head)
    payload = control.recv(size, socket.MSG_WAITALL) if size else b""
    return FrameKind(kind), payload, descriptors[0] if descriptors else None


def _answer(
    kind: FrameKind,
    payload: bytes,
    descriptor: int | None,
    control: socket.socket,
    loaded: worker.LoadedBundle,
    folder: str,
    options: EngineOptions,
) -> bytes:
    """Carry out a request; return the frame of the reply."""
    if kind is FrameKind.REAP:
        pid, status = os.waitpid(NUMBER.unpack(payload)[0], os.WNOHANG)
        ended = NUMBER.pack(os.waitstatus_to_exitcode(status)) if pid else b""
        return encode_frame(FrameKind.REAPED, ended)
    if kind is not FrameKind.FORK or descriptor is None:
        raise ValueError(f"the front sent a frame of kind {kind.name}")
    with socket.socket(fileno=descriptor) as pipe:
        try:
            pid = os.fork()
        except OSError as error:
            reason = f"no engine can be forked for bundle {Path(folder).name} ({error.strerror})"
            return encode_frame(FrameKind.FAILED, reason.encode())
        if pid == 0:
            _run_engine(pipe, control, loaded, folder, options)
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)  # as the engine does: neither must depend on who is first
    return encode_frame(FrameKind.FORKED, NUMBER.pack(pid))


def _run_engine(
    pipe: socket.socket, control: socket.socket, loaded: worker.LoadedBundle, folder: str, options: EngineOptions
) -> None:
    """Be an engine, and never return: this process must not go on with its parent's program."""
    code = 1
    try:
        host = os.getppid()
        control.close()
        os.setpgid(0, 0)  # so that the front can throttle it alone
        end_with_parent(host)
        forbid_forks(sandbox_mode(options.sandbox))
        code = worker.answer(pipe, folder, lambda: worker.check_bundle(loaded, options))
    except BaseException:
        LOG.exception("an engine of %s ended", folder)
    finally:
        os._exit(code)
