"""A pool of threads that share the queries of a call."""

import os
import threading

import numpy as np
import pytest

from retrieval.search.thread_pool import ThreadPool
from retrieval.system.low_priority import LOW, LowPriority


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_query_is_worked_on_once_and_in_order(queries: int, threads: int) -> None:
    """If this failed, a client would get the answers to another query, or none."""
    query_QD = np.arange(queries, dtype=np.float32)[:, None]
    parts = ThreadPool(threads).map_parts(lambda part_PD: part_PD * 2, query_QD)
    assert np.concatenate(parts)[:, 0].tolist() == [2 * number for number in range(queries)]
    assert len(parts) <= (4 * threads if threads > 1 else 1)
    assert min(map(len, parts)) >= min(queries, 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_is_found_stands_where_its_item_stood(threads: int) -> None:
    """If this failed, texts would get each other's vectors if a short run ends before a long one."""

    def slow_first(number: int) -> int:
        if number == 0:
            others_done.wait(30 if threads > 1 else 0)
        elif number == 9:
            others_done.set()
        return number * 2

    others_done = threading.Event()
    assert ThreadPool(threads).map(slow_first, range(10)) == [2 * number for number in range(10)]
    assert ThreadPool(threads).map(slow_first, []) == []


def test_work_is_done_by_as_many_threads_as_asked_for() -> None:
    """If this failed, a batch would be searched on one core while others are idle."""
    pool, together = ThreadPool(3), threading.Barrier(3, timeout=30)

    def meet(_: np.ndarray) -> int:
        together.wait()
        return threading.get_native_id()

    query_QD = np.zeros((6, 1), np.float32)
    assert len(set(pool.map_parts(meet, query_QD))) == 3


def test_an_error_of_any_part_reaches_the_caller() -> None:
    """If this failed, an error in one part would be lost, and its queries would have no answer."""

    def refuse(part_PD: np.ndarray) -> None:
        if part_PD[-1, 0] == 5:
            raise RuntimeError("too few")

    with pytest.raises(RuntimeError, match="too few"):
        ThreadPool(2).map_parts(refuse, np.arange(6, dtype=np.float32)[:, None])


def test_threads_do_not_keep_the_low_priority_of_their_first_work() -> None:
    """If this failed, a bundle that was warmed up at low priority would always be searched at low priority."""
    pool, normal = ThreadPool(2), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    together = threading.Barrier(2, timeout=30)

    def priority(_: np.ndarray) -> int:
        together.wait()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    query_QD = np.zeros((4, 1), np.float32)
    assert set(LowPriority().run(lambda: pool.map_parts(priority, query_QD))) == {max(LOW, normal), normal}


def test_a_deferred_pool_has_no_threads_until_it_is_started() -> None:
    """A process that is to be forked would have threads, whose locks the forked processes inherit."""
    before, together = set(threading.enumerate()), threading.Barrier(2, timeout=30)
    pool = ThreadPool(2, started=False)
    assert not set(threading.enumerate()) - before
    assert pool.map(lambda number: number + 1, range(3)) == [1, 2, 3]
    pool.start()
    pool.start()
    assert len(set(threading.enumerate()) - before) == 1
    pool.map(lambda _: together.wait(), range(2))
    pool.close()
