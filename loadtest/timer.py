"""A clock that wakes the loop to the microsecond: Linux's timerfd.

Event loops round their own timers to a millisecond: at thousands of requests a second they would go out in bunches.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

MONOTONIC, ABSOLUTE = 1, 1  # CLOCK_MONOTONIC, which time.monotonic() reads; TFD_TIMER_ABSTIME
now = time.monotonic


class _Timer(ctypes.Structure):
    """struct itimerspec: the interval stays zero, so each setting rings once."""

    _fields_ = [
        ("interval_seconds", ctypes.c_long), ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long),
    ]  # fmt: skip


class Alarm:
    """Calls `ring` in the running loop at the moment that was set last. Raises OSError where there is no such timer."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._libc = ctypes.CDLL(None, use_errno=True)  # os.timerfd_create comes with Python 3.13 only
        self._timer = self._checked(self._libc.timerfd_create(MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._timer, self._rang)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_reader(self._timer)
        os.close(self._timer)

    def set(self, at: float) -> None:
        """Ring at `at`, in seconds of `now()`; at once when that has passed."""
        seconds, rest = divmod(max(1, int(at * 1e9)), 1_000_000_000)  # all zeros would disarm the timer
        setting = _Timer(0, 0, seconds, rest)
        self._checked(self._libc.timerfd_settime(self._timer, ABSOLUTE, ctypes.byref(setting), None))

    def _rang(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:  # set anew since the loop saw it ring
            return
        self._ring()

    @staticmethod
    def _checked(returned: int) -> int:
        if returned < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "timerfd")
        return returned
