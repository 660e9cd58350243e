"""Threads that share out the texts of a call, and stay for the next one.

hnswlib starts threads for every call and only for batches of more than four queries a thread, ONNX Runtime shares out
each product of a small model: both cost more than they bring where texts are short (docs/decisions/0047, 0048).

Suffixes: Q queries, D vector width, P the queries of a part.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.system.limits import available_cores

Item = TypeVar("Item")
Found = TypeVar("Found")
PARTS_PER_THREAD = 4  # a thread whose core is busy with something else takes fewer of them
QUERIES_PER_PART = 2  # to wake a thread takes about as long as to look for one


class Workers:
    """`threads` in all, the caller's among them; by default one for each core that this process may use.

    They are started here and now, since a thread is as gentle as the one that starts it (system/low_priority.py).
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_cores()
        self._pool: ThreadPoolExecutor | None = None
        if self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="worker")
            started = Barrier(self.threads)
            for _ in range(self.threads - 1):
                self._pool.submit(started.wait)
            started.wait()

    def close(self) -> None:
        """Stop the threads after their current work; later work runs in the caller's thread."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def each(self, work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """Return the result of `work` for each item, in order; free threads take the next. Raises its exceptions."""
        pool = self._pool
        if pool is None or len(items) < 2:
            return [work(item) for item in items]
        left, found = deque(enumerate(items)), dict[int, Found]()

        def take() -> None:
            while left:
                try:
                    place, item = left.popleft()
                except IndexError:  # another thread took it
                    return
                found[place] = work(item)

        others = []
        try:
            with suppress(RuntimeError):  # closed: this thread does all the work
                for _ in range(min(self.threads, len(items)) - 1):
                    others.append(pool.submit(take))
            take()
            for other in others:
                other.result()
        finally:
            left.clear()  # after an error or a signal, skip the rest
        return [found[place] for place in range(len(items))]

    def share(self, work: Callable[[NDArray[np.float32]], Found], query_QD: NDArray[np.float32]) -> list[Found]:
        """What `work` returns for each part [P, D] of the queries, in their order. Raises what one of them raises."""
        most = PARTS_PER_THREAD * self.threads if self.threads > 1 else 1
        parts = min(most, len(query_QD) // QUERIES_PER_PART)
        return self.each(work, np.array_split(query_QD, parts)) if parts > 1 else [work(query_QD)]
