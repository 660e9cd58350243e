"""Detect an engine that hangs: one batch is the oldest for too long, even if other worker threads still answer."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None: ...


class TimerLoop(Protocol):
    """The part of an event loop that the watchdog uses."""

    def call_later(self, delay: float, callback: Callable[..., Any], /) -> Timer: ...


class Watchdog:
    """Call `on_hang` when the same batch has been the oldest unanswered one for `seconds`."""

    def __init__(self, seconds: float, on_hang: Callable[[], None], loop: TimerLoop | None = None) -> None:
        """Set up the watchdog; `loop` is the running event loop by default."""
        self._seconds = seconds
        self._on_hang = on_hang
        self._loop = loop or asyncio.get_running_loop()
        self._oldest: int | None = None
        self._timer: Timer | None = None

    def update(self, oldest: int | None) -> None:
        """Set the number of the oldest unanswered batch; None if all are answered. Call it after every change."""
        if oldest == self._oldest:
            return
        self._oldest = oldest
        if self._timer:
            self._timer.cancel()
        self._timer = None if oldest is None else self._loop.call_later(self._seconds, self._on_hang)
