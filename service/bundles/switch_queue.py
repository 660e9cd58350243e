"""Serialize changes of the served bundle: one at a time, and a later one pre-empts one that is still loading.

A bundle that hangs while loading must not block a rollback or the activation of another bundle.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from retrieval.errors import DiptychError
from service.bundles.generation import Generation
from service.errors import Refusal
from service.observe.supervisor import Supervisor, described


class Turns:
    """Serialize the changes of one service. Loading can be pre-empted; a write to the store is always completed."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.bundle: str | None = None  # the bundle that is being prepared
        self.urgent = False  # whether it is being prepared for a rollback
        self._supervisor = supervisor
        self._lock = asyncio.Lock()
        self._last = 0  # number of the last order
        self._turn = 0  # number of the order that holds the lock
        self._loading: asyncio.Task[Generation] | None = None
        self._why = ""  # why the orders before the last one are refused
        self._stopping = False

    @asynccontextmanager
    async def turn(self, bundle: str, urgent: bool = False) -> AsyncIterator[None]:
        """Pre-empt the loading of another bundle and hold the lock for this order.

        Raises Refusal 409 when the same bundle is being prepared, a later order arrives, or the service stops.
        """
        if self._stopping:
            raise refused(bundle, "the service is stopping")
        if self.bundle == bundle and (self.urgent or not urgent):
            raise refused(bundle, f"bundle {bundle} is being prepared")
        self._last = mine = self._last + 1
        self._cut_short(f"bundle {bundle} was requested later")
        async with self._lock:
            self._turn = mine
            self._check(bundle)
            self.bundle, self.urgent = bundle, urgent
            try:
                yield
            finally:
                self.bundle, self.urgent = None, False

    async def load(self, bundle: str, work: Coroutine[Any, Any, Generation]) -> Generation:
        """Await `work` within `turn`. Raises its exceptions, and Refusal 409 when it is pre-empted."""
        if self._is_late():
            work.close()
            raise refused(bundle, self._why)
        self._loading = loading = self._supervisor.run("bundle_loading", work)
        try:
            return await loading
        except asyncio.CancelledError as error:
            if (caller := asyncio.current_task()) and caller.cancelling():
                raise
            raise refused(bundle, self._why) from error
        finally:
            self._loading = None

    async def quiet(self) -> None:
        """Wait until no change is in progress."""
        async with self._lock:
            pass

    def stop(self) -> None:
        """Cancel the loading in progress and refuse further orders."""
        self._stopping = True
        self._cut_short("the service is stopping")

    def _cut_short(self, why: str) -> None:
        self._why = why
        if self._loading:
            self._loading.cancel()

    def _is_late(self) -> bool:
        return self._stopping or self._turn != self._last

    def _check(self, bundle: str) -> None:
        if self._is_late():
            raise refused(bundle, self._why)


def refused(bundle: str, why: str) -> Refusal:
    """Return the 409 response for a bundle that was not activated."""
    return Refusal(409, "busy_switching", f"Bundle {bundle} was not activated: {why}.")


def reason(error: Exception) -> str:
    """Return the reason for a failed change of bundle, as a clause."""
    if isinstance(error, OSError):
        return f"the store cannot be used ({error})"
    return str(error) if isinstance(error, DiptychError) else described(error)
