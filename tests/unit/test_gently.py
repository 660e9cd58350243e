"""Work that gives way."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from retrieval.gently import LAST, gently


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_it_and_its_threads_stand_behind_and_nobody_else_does() -> None:
    """If it fails, loading a bundle takes the processor from answers, or the process stays slow for ever."""
    before = niceness()

    def work() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            return [niceness(), pool.submit(niceness).result()]

    assert gently(work) == [LAST, LAST]
    assert niceness() == before


def test_its_errors_are_the_callers() -> None:
    """If it fails, a damaged bundle is opened as if it were whole."""
    with pytest.raises(ValueError, match="damaged"):
        gently(lambda: int("damaged"))
