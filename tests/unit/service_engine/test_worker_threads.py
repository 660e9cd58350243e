"""Worker threads that share an engine's pipe."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from retrieval.system.limits import available_cores
from service.engine.protocol import FrameKind, encode_frame, read_frame
from service.engine.worker_threads import SharedPipe, count_threads, run_in_threads
from tests.support.service import wait_until


@contextmanager
def worker_threads(count: int, answer: Callable[[bytes], bytes]) -> Iterator[socket.socket]:
    """The front's end of a pipe whose every frame is answered by one of `count` threads."""
    front, engine = socket.socketpair()
    front.settimeout(10)
    pipe = SharedPipe(engine, count)

    def work() -> None:
        while True:
            with pipe.read_lock:
                received = read_frame(pipe)
            if received is None:
                return
            pipe.send(encode_frame(FrameKind.ANSWERS, answer(received[1])))

    thread = threading.Thread(target=run_in_threads, args=(count, work, pipe.shutdown), daemon=True)
    thread.start()
    try:
        yield front
    finally:
        front.close()
        thread.join(10)
        engine.close()
    assert not thread.is_alive(), "a thread goes on although the front has closed its pipe"


def ask(pipe: socket.socket, text: bytes) -> None:
    pipe.sendall(encode_frame(FrameKind.BATCH, text))


def answer(pipe: socket.socket) -> bytes:
    with pipe.makefile("rb", buffering=0) as stream:
        _, text = read_frame(WholeReads(stream)) or pytest.fail("no answer")
    return text


class WholeReads:
    """Read exactly `size` bytes from a stream that returns parts; the socket's time limit applies."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        received = b""
        while len(received) < size and (more := self._stream.read(size - len(received))):
            received += more
        return received


def test_one_thread_works_while_another_does() -> None:
    """The second of two queries would wait for the first, as it does with one thread."""
    both = threading.Barrier(2)

    def meet(text: bytes) -> bytes:
        both.wait(10)
        return text

    with worker_threads(2, meet) as pipe:
        ask(pipe, b"one"), ask(pipe, b"two")
        assert {answer(pipe), answer(pipe)} == {b"one", b"two"}


def epoll_waiters() -> int:
    """Return the number of threads of this process that wait for an epoll."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "wchan").read_text())
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return sum("epoll" in name or "ep_poll" in name for name in names)


@pytest.mark.skipif(not Path("/proc/self/wchan").exists(), reason="the system does not show what a thread waits for")
def test_queries_one_by_one_stay_with_one_thread() -> None:
    """Threads would take turns, each on a core whose cache has gone cold, and a single client would wait longer."""
    before = epoll_waiters()
    answered_by = set()
    with worker_threads(2, lambda _: str(threading.get_ident()).encode()) as pipe:
        for _ in range(20):
            wait_until(lambda: epoll_waiters() == before + 2)  # the thread that answered waits again
            ask(pipe, b"one")
            answered_by.add(answer(pipe))
    assert len(answered_by) == 1


def test_frames_of_any_size_are_not_mixed() -> None:
    """Two threads that read or write at the same time would mix their bytes, and the front would kill the engine."""
    texts = [bytes([number]) * (number * 7919 % 300_000) for number in range(64)]
    with worker_threads(3, lambda text: text) as pipe:
        threading.Thread(target=lambda: [ask(pipe, text) for text in texts], daemon=True).start()
        assert sorted(answer(pipe) for _ in texts) == sorted(texts)


def test_the_error_of_one_thread_ends_all() -> None:
    """The engine would continue with one thread less, and the batch of that thread would never be answered."""
    front, engine = socket.socketpair()
    pipe = SharedPipe(engine, 2)

    def work() -> None:
        with pipe.read_lock:
            if read_frame(pipe):
                raise ValueError("out of step")

    rescue = threading.Timer(10, front.shutdown, [socket.SHUT_RDWR])  # a failure, instead of a test without end
    rescue.start()
    with front, engine:
        ask(front, b"one")
        with pytest.raises(ValueError, match="out of step"):
            run_in_threads(2, work, pipe.shutdown)
        assert front.recv(1) == b""
        assert rescue.is_alive(), "the threads only ended because the other side closed the pipe"
        rescue.cancel()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) != available_cores(), reason="a quota gives no core of one's own")
def test_as_many_threads_as_cores_are_pinned() -> None:
    """The system would put two threads on one core while another is idle, or the caller would stay on one core."""
    before, pinned = os.sched_getaffinity(0), []
    run_in_threads(max(2, len(before)), lambda: pinned.append(frozenset(os.sched_getaffinity(0))), lambda: None)
    one_each = {frozenset({core}) for core in before}
    assert set(pinned) == (one_each if len(before) > 1 else {frozenset(before)})
    assert os.sched_getaffinity(0) == before


def test_only_encoders_that_release_the_gil_get_several_threads() -> None:
    """Static encoders would answer fewer requests, or a transformer's queries would wait while a core is idle."""
    assert [count_threads("transformer", "cpu", threads, cores=4) for threads in (None, 1, 2, 8)] == [2, 1, 2, 2]
    assert count_threads("static", "cpu", 8, cores=4) == count_threads("transformer", "cuda", 8, cores=4) == 1
    assert count_threads("transformer", "cpu", 2, cores=1) == 1
