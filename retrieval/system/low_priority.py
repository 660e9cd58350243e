"""Run work at low priority, so that loading a bundle does not slow down one that is served."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
LOW = 10  # niceness; it gets a tenth of a core that a normal thread uses, while 19 would get a seventieth
GENTLE_SECONDS = 15.0  # after the first call in this process; later calls run at normal priority

_began: float | None = None  # time of the first call in this process


def gently(work: Callable[[], Result]) -> Result:
    """Run `work` at low priority and return its result; at normal priority once GENTLE_SECONDS have passed.

    It runs in its own thread, since a thread cannot raise its priority again. Threads that it starts inherit the low
    priority.
    """
    global _began
    _began = time.monotonic() if _began is None else _began
    if time.monotonic() - _began > GENTLE_SECONDS:
        return work()

    def behind() -> Result:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(own, LOW))  # lowering niceness needs a privilege
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(behind).result()


def at_once(work: Callable[[], Result]) -> Result:
    """Run `work` at normal priority and return its result."""
    return work()
