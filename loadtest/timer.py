"""A timer with microsecond resolution: Linux's timerfd.

Event loops round their own timers to a millisecond, so thousands of requests per second would leave in bursts.
Hand-written because `os.timerfd_create` is new in Python 3.13.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

MONOTONIC, ABSOLUTE = 1, 1  # CLOCK_MONOTONIC, the clock of time.monotonic(); TFD_TIMER_ABSTIME
now = time.monotonic


class _TimerSpec(ctypes.Structure):
    """struct itimerspec; the interval stays zero, so the timer fires once."""

    _fields_ = [
        ("interval_seconds", ctypes.c_long), ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long),
    ]  # fmt: skip


class PreciseTimer:
    """Call `callback` in the running loop at the time set last. Raises OSError if the system has no timerfd."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._checked(self._libc.timerfd_create(MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._fd, self._fired)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def set(self, at: float) -> None:
        """Fire at `at`, in seconds of `now()`; at once if that has passed."""
        seconds, rest = divmod(max(1, int(at * 1e9)), 1_000_000_000)  # all zeros would disarm the timer
        spec = _TimerSpec(0, 0, seconds, rest)
        self._checked(self._libc.timerfd_settime(self._fd, ABSOLUTE, ctypes.byref(spec), None))

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set again since the loop saw it fire
            return
        self._callback()

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "timerfd")
        return result
