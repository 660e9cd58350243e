"""Work that gives way."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from retrieval.system import low_priority as module
from retrieval.system.low_priority import LOW, at_low_priority


@pytest.fixture(autouse=True)
def first_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing gentle has been done in this process yet."""
    monkeypatch.setattr(module, "_first_call", None)


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_it_and_its_threads_stand_behind_and_nobody_else_does() -> None:
    """If it fails, loading a bundle takes the processor from answers, or the process stays slow for ever."""
    before = niceness()

    def work() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            return [niceness(), pool.submit(niceness).result()]

    assert at_low_priority(work) == [max(before, LOW)] * 2
    assert niceness() == before


def test_it_does_not_stand_behind_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a bundle never finishes loading on a machine that is busy with something else."""
    before = niceness()
    at_low_priority(niceness)
    monkeypatch.setattr(module, "LOW_SECONDS", -1.0)
    assert at_low_priority(niceness) == before
    assert at_low_priority(lambda: threading.get_native_id()) == threading.get_native_id()


def test_its_errors_are_the_callers() -> None:
    """If it fails, a damaged bundle is opened as if it were whole."""
    with pytest.raises(ValueError, match="damaged"):
        at_low_priority(lambda: int("damaged"))
