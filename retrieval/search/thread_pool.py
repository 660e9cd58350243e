"""Threads that share the queries of a call and stay for the next call.

hnswlib starts threads in every call, and only for batches of more than four queries per thread. ONNX Runtime splits
each product of a small model. Both cost more than they gain for short texts (docs/decisions/0047, 0048).

Suffixes: Q queries, D vector width, P queries of a part.
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
Result = TypeVar("Result")
PARTS_PER_THREAD = 4  # a thread whose core is busy with other work takes fewer of them
QUERIES_PER_PART = 2  # waking a thread takes about as long as searching for one query


class ThreadPool:
    """A pool of `threads` threads, including the caller's; default: one per available core.

    The threads are started in the constructor, since a thread inherits the priority of the thread that starts it;
    with `started=False`, by `start`, since a forked process has no threads. Until then the caller does all the work.
    """

    def __init__(self, threads: int | None = None, *, started: bool = True) -> None:
        self.threads = threads or available_cores()
        self._executor: ThreadPoolExecutor | None = None
        if started:
            self.start()

    def start(self) -> None:
        """Start the threads, once."""
        if self.threads > 1 and self._executor is None:
            self._executor = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="worker")
            started = Barrier(self.threads)
            for _ in range(self.threads - 1):
                self._executor.submit(started.wait)
            started.wait()

    def close(self) -> None:
        """Stop the threads after their current work; later work runs in the caller's thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return the result of `work` for each item, in order; free threads take the next. Raises its exceptions."""
        executor = self._executor
        if executor is None or len(items) < 2:
            return [work(item) for item in items]
        queue, results = deque(enumerate(items)), dict[int, Result]()

        def run() -> None:
            while queue:
                try:
                    place, item = queue.popleft()
                except IndexError:  # another thread took it
                    return
                results[place] = work(item)

        futures = []
        try:
            with suppress(RuntimeError):  # closed: this thread does all the work
                for _ in range(min(self.threads, len(items)) - 1):
                    futures.append(executor.submit(run))
            run()
            for future in futures:
                future.result()
        finally:
            queue.clear()  # after an error or a signal, skip the rest
        return [results[place] for place in range(len(items))]

    def map_parts(self, work: Callable[[NDArray[np.float32]], Result], query_QD: NDArray[np.float32]) -> list[Result]:
        """Split queries [Q, D] into parts [P, D] and return the result of `work` for each, in order."""
        most = PARTS_PER_THREAD * self.threads if self.threads > 1 else 1
        parts = min(most, len(query_QD) // QUERIES_PER_PART)
        return self.map(work, np.array_split(query_QD, parts)) if parts > 1 else [work(query_QD)]
