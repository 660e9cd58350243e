"""Whether an engine still answers: one batch must not stay the oldest for too long, whatever other lanes do."""

import asyncio
from collections.abc import Callable


class Watchdog:
    """Calls `bark` when `seconds` have passed since a batch became the oldest unanswered one."""

    def __init__(self, seconds: float, bark: Callable[[], None]) -> None:
        self._seconds = seconds
        self._bark = bark
        self._oldest: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def saw(self, oldest: int | None) -> None:
        """The number of the oldest unanswered batch, None where all are answered; to be told of every change."""
        if oldest == self._oldest:
            return
        self._oldest = oldest
        if self._timer:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if oldest is None else loop.call_later(self._seconds, self._bark)
