"""A share of the time for an engine that loads its bundle while another one answers.

Priority alone is not enough: what loads shares the memory, the caches and, as a rule, the very core of what answers
(docs/decisions/0049). So it is stopped and continued in turn, as long as anybody is asking.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

PERIOD = 0.05  # seconds: a tenth of it is as long as an answer takes

Traffic = Callable[[], bool]  # whether requests are being answered that must not be slowed


def no_traffic() -> bool:
    """There is nobody to be slowed."""
    return False


class Ration:
    """While this context lasts, a process group runs for a share of the time if there is traffic, else always.

    Should this process die meanwhile, nothing is left behind: the kernel ends a stopped group that lost its parent.
    """

    def __init__(self, group: int, share: float, traffic: Traffic) -> None:
        """`group` is the id of a process group whose leader is a child that nobody has waited for yet."""
        self.rested = 0.0  # seconds
        self._group = group
        self._run, self._rest = share * PERIOD, (1 - share) * PERIOD
        self._traffic = traffic
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._next = self._loop.call_later(self._run, self._turn)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._next:
            self._next.cancel()
        self._send(signal.SIGCONT)

    async def wait(self, ready: asyncio.Future[Any], seconds: float) -> None:
        """Until it is `ready`, which may take so many seconds in which it did not have to rest. Raises TimeoutError."""
        counted = 0.0
        while not (await asyncio.wait([ready], timeout=seconds))[0]:
            if self.rested == counted:
                raise TimeoutError
            seconds, counted = self.rested - counted, self.rested

    def _turn(self) -> None:
        if self._rest and self._traffic() and self._send(signal.SIGSTOP):
            self._next = self._loop.call_later(self._rest, self._continue)
        else:
            self._next = self._loop.call_later(self._run, self._turn)

    def _continue(self) -> None:
        self.rested += self._rest
        self._send(signal.SIGCONT)
        self._next = self._loop.call_later(self._run, self._turn)

    def _send(self, what: signal.Signals) -> bool:
        """Whether there was a process to hear it."""
        try:
            os.killpg(self._group, what)
        except (ProcessLookupError, PermissionError):  # it has ended; macOS says the latter
            return False
        return True
