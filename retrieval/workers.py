"""Threads that share out the queries of a search, and stay for the next one.

hnswlib starts threads for every call and only for batches of more than four queries a thread; these answer a tenth
more where many ask for one text each (docs/decisions/0047).

Suffixes: Q queries, D vector width, P the queries of a part.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.limits import available_cores

Found = TypeVar("Found")
QUERIES_A_PART = 2  # to wake a thread takes about as long as to look for one


class Workers:
    """`threads` in all, the caller's among them; by default one for each core that this process may use.

    They are started here and now, since a thread is as gentle as the one that starts it (`retrieval.gently`).
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_cores()
        self._pool: ThreadPoolExecutor | None = None
        if self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="search")
            started = Barrier(self.threads)
            for _ in range(self.threads - 1):
                self._pool.submit(started.wait)
            started.wait()

    def share(self, work: Callable[[NDArray[np.float32]], Found], query_QD: NDArray[np.float32]) -> list[Found]:
        """What `work` returns for each part [P, D] of the queries, in their order. Raises what one of them raises."""
        parts = min(self.threads, len(query_QD) // QUERIES_A_PART)
        if self._pool is None or parts < 2:
            return [work(query_QD)]
        first_PD, *rest = np.array_split(query_QD, parts)
        others = [self._pool.submit(work, part_PD) for part_PD in rest]
        return [work(first_PD), *(other.result() for other in others)]
