"""Lanes: threads of an engine that answer a batch each, side by side, on one pipe.

A transformer's encoder leaves the interpreter to others while it computes, so the second of two queries need not wait
for the first. Who began to wait last is woken first: queries that come one by one are all answered by the same thread,
whose core is warm. Where there is a core for each lane, each keeps to its own: left to the system, two that work at a
time share one core more often than not, beside one that idles (docs/decisions/0059).
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

SIDE_BY_SIDE = 2  # more were not measured


def lanes_for(encoder: str, provider: str, threads: int | None) -> int:
    """How many lanes suit a bundle's encoder. Those of a static one would wait for each other: it keeps the lock."""
    if (encoder, provider) != ("transformer", "cpu"):
        return 1
    return min(SIDE_BY_SIDE, available_cores(), threads or SIDE_BY_SIDE)


class SharedPipe:
    """The engine's end of its pipe. A lane reads a whole frame in its turn: `with pipe.turn: read_frame(pipe)`."""

    turn: AbstractContextManager[None]
    _read: Callable[[int], bytes]

    def __init__(self, pipe: socket.socket, lanes: int) -> None:
        self._pipe = pipe
        self._sending = Lock()
        if lanes > 1:
            self.turn, self._read = _Turn(pipe), partial(_read_whole, pipe)
        else:  # who is alone needs no turn and may read ahead; an engine that takes batches of 0.3 ms feels either
            self.turn, self._read = nullcontext(), pipe.makefile("rb").read

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer when the other side has gone."""
        return self._read(size)

    def send(self, frame: bytes) -> None:
        """Write a whole frame, between two of other lanes."""
        with self._sending:
            self._pipe.sendall(frame)

    def hang_up(self) -> None:
        """End every lane's reading, and tell the other side."""
        self._pipe.shutdown(socket.SHUT_RDWR)


def _read_whole(pipe: socket.socket, size: int) -> bytes:
    found = pipe.recv(size, socket.MSG_WAITALL)
    while len(found) < size and (more := pipe.recv(size - len(found), socket.MSG_WAITALL)):
        found += more  # whoever was stopped and continued meanwhile has got a part
    return found


class _Turn(AbstractContextManager[None]):
    """Entered by one thread at a time, once there is something to read; by the one that began to wait last."""

    def __init__(self, pipe: socket.socket) -> None:
        # The kernel wakes the last of an epoll's waiters first, and with ONESHOT nobody else until it is armed again.
        self._pipe, self._ready = pipe, select.epoll()
        self._ready.register(pipe, select.EPOLLIN | select.EPOLLONESHOT)

    def __enter__(self) -> None:
        self._ready.poll()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ready.modify(self._pipe, select.EPOLLIN | select.EPOLLONESHOT)


def side_by_side(lanes: int, work: Callable[[], None], hang_up: Callable[[], None]) -> None:
    """Run `work` in so many threads until all have returned. One that raises hangs up, and its error is raised."""
    cores = sorted(os.sched_getaffinity(0))
    apart = lanes == len(cores) == available_cores()  # a quota of more cores gives none of them for oneself

    def lane(number: int) -> None:
        if apart:
            with suppress(OSError):  # forbidden, or the cores have changed: then the system places it, somewhat worse
                os.sched_setaffinity(0, {cores[number]})  # of this thread alone
        try:
            work()
        except BaseException:
            hang_up()
            raise

    if lanes == 1:
        work()
        return
    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
        for ended in as_completed([pool.submit(lane, number) for number in range(lanes)]):
            ended.result()
