"""Limit the CPU time of an engine that loads its bundle while another engine answers.

Low priority is not enough: a loading engine shares memory bandwidth, caches and usually the core of the engine that
answers (docs/decisions/0049). While requests arrive, its process group is therefore stopped and continued in turn.
"""

import asyncio
import os
import signal
from types import TracebackType
from typing import Any, Self

from service.engine.load_policy import LoadPolicy

PERIOD = 0.05  # seconds between two starts; a tenth of it is as long as an answer takes


class CpuThrottle:
    """A context in which a process group runs for a share of the time while requests are being answered.

    If this process dies inside the context, the kernel ends the stopped group, because it has lost its parent.
    """

    def __init__(self, group: int, policy: LoadPolicy) -> None:
        """Set up the throttle. `group` is a process group whose leader is a child that has not been waited for."""
        self.stopped_seconds = 0.0
        self._group = group
        self._policy = policy
        self._run_seconds = policy.cpu_share * PERIOD
        self._stop_seconds = (1 - policy.cpu_share) * PERIOD
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(self._run_seconds, self._stop_if_busy)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._send(signal.SIGCONT)

    async def wait(self, ready: asyncio.Future[Any], seconds: float) -> None:
        """Wait until `ready` is done, for at most `seconds` in which the group was not stopped. Raises TimeoutError."""
        counted = 0.0
        while not (await asyncio.wait([ready], timeout=seconds))[0]:
            if self.stopped_seconds == counted:
                raise TimeoutError
            seconds, counted = self.stopped_seconds - counted, self.stopped_seconds

    def _stop_if_busy(self) -> None:
        if self._stop_seconds and self._policy.is_busy() and self._send(signal.SIGSTOP):
            self._timer = self._loop.call_later(self._stop_seconds, self._continue)
        else:
            self._timer = self._loop.call_later(self._run_seconds, self._stop_if_busy)

    def _continue(self) -> None:
        self.stopped_seconds += self._stop_seconds
        self._send(signal.SIGCONT)
        self._timer = self._loop.call_later(self._run_seconds, self._stop_if_busy)

    def _send(self, number: signal.Signals) -> bool:
        """Send a signal to the group; return whether the group still exists."""
        try:
            os.killpg(self._group, number)
        except (ProcessLookupError, PermissionError):  # PermissionError: an ended group on macOS
            return False
        return True
