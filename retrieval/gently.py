"""Work behind everybody else's: a bundle that is loaded beside one that is served must not be felt."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
LOW = 10  # niceness: beside one busy thread of the usual niceness a tenth of a core, where 19 is a seventieth
GENTLE_SECONDS = 15.0  # what begins later in this process than that after the first gentle work is done directly

_began: float | None = None  # when gentle work began in this process


def gently(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, done at low priority; once that has taken too long in this process, directly.

    In a thread of its own, since no process may take such a step back; threads that it starts are gentle as well.
    """
    global _began
    _began = time.monotonic() if _began is None else _began
    if time.monotonic() - _began > GENTLE_SECONDS:
        return work()

    def behind() -> Result:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(own, LOW))  # back down needs a privilege
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(behind).result()


def at_once(work: Callable[[], Result]) -> Result:
    """As `gently`, in no such way."""
    return work()
