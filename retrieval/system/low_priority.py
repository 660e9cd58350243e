"""Run work at low priority, so that loading a bundle does not slow down one that is served."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
LOW = 10  # niceness; it gets a tenth of a core that a normal thread uses, while 19 would get a seventieth
LOW_SECONDS = 15.0  # after the first call in this process; later calls run at normal priority


class LowPriority:
    """Run work at low priority until `seconds` have passed since the first call."""

    def __init__(self, seconds: float = LOW_SECONDS) -> None:
        self._seconds = seconds
        self._first_call: float | None = None

    def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` and return its result.

        It runs in its own thread, since a thread cannot raise its priority again. Threads that it starts inherit the
        low priority.
        """
        now = time.monotonic()
        self._first_call = now if self._first_call is None else self._first_call
        if now - self._first_call > self._seconds:
            return work()

        def run() -> Result:
            niceness = os.getpriority(os.PRIO_PROCESS, 0)
            # max: lowering the niceness needs a privilege
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(niceness, LOW))
            return work()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run).result()


_OF_THIS_PROCESS = LowPriority()


def at_low_priority(work: Callable[[], Result]) -> Result:
    """Run `work` at low priority and return its result; at normal priority once LOW_SECONDS have passed."""
    return _OF_THIS_PROCESS.run(work)


def directly(work: Callable[[], Result]) -> Result:
    """Run `work` at normal priority and return its result."""
    return work()
