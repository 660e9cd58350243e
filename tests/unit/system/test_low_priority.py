"""Work at low priority."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from retrieval.system.low_priority import LOW, LowPriority


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_the_work_and_its_threads_have_low_priority() -> None:
    """If it fails, loading a bundle takes the CPU from requests, or the process keeps its low priority."""
    before = niceness()

    def work() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            return [niceness(), pool.submit(niceness).result()]

    assert LowPriority().run(work) == [max(before, LOW)] * 2
    assert niceness() == before


def test_low_priority_ends_after_its_seconds() -> None:
    """If it fails, a bundle never finishes loading on a busy machine."""
    before = niceness()
    low_priority = LowPriority(seconds=-1)
    assert low_priority.run(niceness) == before
    assert low_priority.run(lambda: threading.get_native_id()) == threading.get_native_id()


def test_errors_of_the_work_are_raised() -> None:
    """If it fails, a damaged bundle is opened without an error."""
    with pytest.raises(ValueError, match="damaged"):
        LowPriority().run(lambda: int("damaged"))
