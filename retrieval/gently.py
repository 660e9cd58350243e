"""Work behind everybody else's: a bundle that is loaded beside one that is served must not be felt."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
LAST = 19  # the system's own word for it


def gently(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, done with the processor time that nobody else wants.

    In a thread of its own, since no process may take such a step back; threads that it starts are gentle as well.
    """

    def behind() -> Result:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LAST)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(behind).result()


def at_once(work: Callable[[], Result]) -> Result:
    """As `gently`, in no such way."""
    return work()
