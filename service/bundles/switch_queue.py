"""Serialize changes of the served bundle: one at a time, and a later one pre-empts one that is still loading.

A bundle that hangs while loading must not block a rollback or the activation of another bundle.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from service.bundles.generation import Generation
from service.errors import Refusal
from service.observe.supervisor import Supervisor


class SwitchQueue:
    """Serialize the changes of one service. Loading can be pre-empted; a write to the store is always completed."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.preparing: str | None = None  # the bundle that is being prepared
        self.is_urgent = False  # whether it is being prepared for a rollback
        self.is_stopping = False
        self._supervisor = supervisor
        self._lock = asyncio.Lock()
        self._last_change = 0  # number of the last change that was requested
        self._active_change = 0  # number of the change that holds the lock
        self._loading: asyncio.Task[Generation] | None = None
        self._preemption_reason = ""  # why the changes before the last one are refused

    @asynccontextmanager
    async def change(self, bundle: str, urgent: bool = False) -> AsyncIterator[None]:
        """Pre-empt the loading of another bundle and hold the lock for this change.

        Raises Refusal 409 when the same bundle is being prepared, a later change is requested, or the service stops.
        """
        if self.is_stopping:
            raise refused(bundle, "the service is stopping")
        if self.preparing == bundle and (self.is_urgent or not urgent):
            raise refused(bundle, f"bundle {bundle} is being prepared")
        self._last_change = number = self._last_change + 1
        self._preempt(f"bundle {bundle} was requested later")
        async with self._lock:
            self._active_change = number
            if self._is_preempted():
                raise refused(bundle, self._preemption_reason)
            self.preparing, self.is_urgent = bundle, urgent
            try:
                yield
            finally:
                self.preparing, self.is_urgent = None, False

    async def load(self, bundle: str, work: Coroutine[Any, Any, Generation]) -> Generation:
        """Await `work` within `change`. Raises its exceptions, and Refusal 409 when it is pre-empted."""
        if self._is_preempted():
            work.close()
            raise refused(bundle, self._preemption_reason)
        self._loading = loading = self._supervisor.run("bundle_loading", work)
        try:
            return await loading
        except asyncio.CancelledError as error:
            if (caller := asyncio.current_task()) and caller.cancelling():
                raise
            raise refused(bundle, self._preemption_reason) from error
        finally:
            self._loading = None

    async def wait_until_idle(self) -> None:
        """Wait until no change is in progress."""
        async with self._lock:
            pass

    def stop(self) -> None:
        """Cancel the loading in progress and refuse further changes."""
        self.is_stopping = True
        self._preempt("the service is stopping")

    def _preempt(self, reason: str) -> None:
        self._preemption_reason = reason
        if self._loading:
            self._loading.cancel()

    def _is_preempted(self) -> bool:
        return self.is_stopping or self._active_change != self._last_change


def refused(bundle: str, reason: str) -> Refusal:
    """Return the 409 response for a bundle that was not activated."""
    return Refusal(409, "busy_switching", f"Bundle {bundle} was not activated: {reason}.")
