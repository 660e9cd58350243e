"""Worker threads of an engine: each answers one batch at a time, and all share one pipe.

A transformer encoder releases the GIL while it computes, so a second batch need not wait for the first. The thread that
began to wait last is woken first: queries that arrive one by one are all answered by the same thread, whose core is
warm. With a core for each thread, each thread is pinned to its own core: otherwise the system often runs two threads on
one core while another core is idle (docs/decisions/0059).
"""

import os
import select
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from threading import Lock
from types import TracebackType

from retrieval.system.limits import available_cores

MAX_THREADS = 2  # by default; more were not measured


def count_threads(encoder: str, provider: str, threads: int | None, cores: int | None = None) -> int:
    """Return the default number of worker threads on `cores` (default: the available ones).

    `threads` are the encoder's. A static encoder holds the GIL, so its worker threads would wait for each other.
    """
    if (encoder, provider) != ("transformer", "cpu"):
        return 1
    return min(MAX_THREADS, cores or available_cores(), threads or MAX_THREADS)


class SharedPipe:
    """The engine's end of its pipe. Read a whole frame under the lock: `with pipe.read_lock: read_frame(pipe)`."""

    read_lock: AbstractContextManager[None]
    _read: Callable[[int], bytes]

    def __init__(self, pipe: socket.socket, threads: int) -> None:
        self._pipe = pipe
        self._sending = Lock()
        if threads > 1:
            self.read_lock, self._read = _ReadLock(pipe), partial(_read_whole, pipe)
        else:  # a single thread needs no lock and may read ahead; either costs an engine with batches of 0.3 ms time
            self.read_lock, self._read = nullcontext(), pipe.makefile("rb").read

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer at the end of the stream."""
        return self._read(size)

    def send(self, frame: bytes) -> None:
        """Write a whole frame; frames of several threads are not mixed."""
        with self._sending:
            self._pipe.sendall(frame)

    def shutdown(self) -> None:
        """Close both directions of the pipe: the reads of all threads end, and the front is notified."""
        self._pipe.shutdown(socket.SHUT_RDWR)


def _read_whole(pipe: socket.socket, size: int) -> bytes:
    received = pipe.recv(size, socket.MSG_WAITALL)
    while len(received) < size and (rest := pipe.recv(size - len(received), socket.MSG_WAITALL)):
        received += rest  # a signal, such as SIGSTOP and SIGCONT, can shorten a read
    return received


class _ReadLock(AbstractContextManager[None]):
    """A lock that a thread gets when there is data to read; the thread that began to wait last gets it first."""

    def __init__(self, pipe: socket.socket) -> None:
        # The kernel wakes the last waiter of an epoll first, and with ONESHOT no other one until it is armed again.
        self._pipe, self._ready = pipe, select.epoll()
        self._ready.register(pipe, select.EPOLLIN | select.EPOLLONESHOT)

    def __enter__(self) -> None:
        self._ready.poll()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ready.modify(self._pipe, select.EPOLLIN | select.EPOLLONESHOT)


def run_in_threads(threads: int, work: Callable[[], None], shutdown: Callable[[], None]) -> None:
    """Run `work` in each of `threads` threads until all return.

    When one raises, `shutdown` is called so that the others end, and its error is raised.
    """
    cores = sorted(os.sched_getaffinity(0))
    pinned = threads == len(cores) == available_cores()  # a CPU quota does not give exclusive use of a core

    def run(number: int) -> None:
        if pinned:
            with suppress(OSError):  # not permitted, or the cores have changed: the system places the thread
                os.sched_setaffinity(0, {cores[number]})  # of this thread only
        try:
            work()
        except BaseException:
            shutdown()
            raise

    if threads == 1:
        work()
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="worker") as pool:
        for ended in as_completed([pool.submit(run, number) for number in range(threads)]):
            ended.result()
