"""Threads that share an engine's pipe."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO

import pytest

from retrieval.system.limits import available_cores
from service.engine.protocol import Kind, frame, read_frame
from service.engine.worker_threads import SharedPipe, lanes_for, side_by_side


@contextmanager
def lanes(count: int, answer: Callable[[bytes], bytes]) -> Iterator[socket.socket]:
    """The front's end of a pipe whose every frame is answered by one of `count` lanes."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    pipe = SharedPipe(theirs, count)

    def work() -> None:
        while True:
            with pipe.turn:
                received = read_frame(pipe)
            if received is None:
                return
            pipe.send(frame(Kind.ANSWERS, answer(received[1])))

    thread = threading.Thread(target=side_by_side, args=(count, work, pipe.hang_up), daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(10)
        theirs.close()
    assert not thread.is_alive(), "a lane goes on although the front has gone"


def ask(pipe: socket.socket, text: bytes) -> None:
    pipe.sendall(frame(Kind.BATCH, text))


def answer(pipe: socket.socket) -> bytes:
    with pipe.makefile("rb", buffering=0) as stream:
        _, text = read_frame(Patient(stream)) or pytest.fail("no answer")
    return text


class Patient:
    """Reads all that was asked for, from a stream that gives parts; the socket's own time limit holds."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        found = b""
        while len(found) < size and (more := self._stream.read(size - len(found))):
            found += more
        return found


def test_one_lane_works_while_another_does() -> None:
    """The second of two queries would wait for the first, as it does with one lane."""
    both = threading.Barrier(2)

    def meet(text: bytes) -> bytes:
        both.wait(10)
        return text

    with lanes(2, meet) as pipe:
        ask(pipe, b"one"), ask(pipe, b"two")
        assert {answer(pipe), answer(pipe)} == {b"one", b"two"}


def test_queries_one_by_one_stay_with_one_lane() -> None:
    """Lanes would take turns, each on a core that has gone cold since its last: a single client would wait longer."""

    def changes() -> int:
        with lanes(2, lambda _: str(threading.get_ident()).encode()) as pipe:
            found = []
            for _ in range(20):
                ask(pipe, b"one")
                found.append(answer(pipe))
                time.sleep(0.01)  # nothing shows when the lane that answered waits again
        return sum(one != next_one for one, next_one in pairwise(found))

    # 19 where they take turns. A lane that the system holds up is overtaken, on a busy machine more than once.
    assert min(changes() for _ in range(3)) <= 6


def test_frames_of_any_size_stay_whole() -> None:
    """Two lanes that read or write at a time would take each other's bytes, and the front would kill the engine."""
    texts = [bytes([number]) * (number * 7919 % 300_000) for number in range(64)]
    with lanes(3, lambda text: text) as pipe:
        threading.Thread(target=lambda: [ask(pipe, text) for text in texts], daemon=True).start()
        assert sorted(answer(pipe) for _ in texts) == sorted(texts)


def test_the_error_of_one_lane_ends_all() -> None:
    """The engine would live on with a lane less, and whatever that one had would be unanswered for ever."""
    ours, theirs = socket.socketpair()
    pipe = SharedPipe(theirs, 2)

    def work() -> None:
        with pipe.turn:
            if read_frame(pipe):
                raise ValueError("out of step")

    rescue = threading.Timer(10, ours.shutdown, [socket.SHUT_RDWR])  # a failure, instead of a test without end
    rescue.start()
    with ours, theirs:
        ask(ours, b"one")
        with pytest.raises(ValueError, match="out of step"):
            side_by_side(2, work, pipe.hang_up)
        assert ours.recv(1) == b""
        assert rescue.is_alive(), "the lanes only ended because the other side hung up"
        rescue.cancel()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) != available_cores(), reason="a quota gives no core for oneself")
def test_as_many_lanes_as_cores_keep_apart() -> None:
    """The system puts two lanes on one core beside one that idles: each of two queries at a time would take twice as
    long; and whoever started the lanes would be left on one core as well."""
    before, found = os.sched_getaffinity(0), []
    side_by_side(max(2, len(before)), lambda: found.append(frozenset(os.sched_getaffinity(0))), lambda: None)
    alone = {frozenset({core}) for core in before}
    assert set(found) == (alone if len(before) > 1 else {frozenset(before)})
    assert os.sched_getaffinity(0) == before


def test_lanes_are_for_encoders_that_let_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static encoders would answer less, or a transformer's queries wait for each other where a core idles."""
    monkeypatch.setattr("service.engine.worker_threads.available_cores", lambda: 4)
    assert [lanes_for("transformer", "cpu", threads) for threads in (None, 1, 2, 8)] == [2, 1, 2, 2]
    assert lanes_for("static", "cpu", 8) == lanes_for("transformer", "cuda", 8) == 1
    monkeypatch.setattr("service.engine.worker_threads.available_cores", lambda: 1)
    assert lanes_for("transformer", "cpu", 2) == 1
