"""Supervise the background tasks of the service.

An unexpected exception is logged with the task's name and counted. A task without a caller is also shown in /readyz and
retried with exponential back-off. docs/decisions/0067 lists the tasks and the effect of a failure of each.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeVar

from retrieval.errors import DiptychError
from service.errors import Refusal
from service.observe.detached_thread import run_detached
from service.observe.metrics import Metrics

LOG = logging.getLogger("diptych")
SETTLED_SECONDS = 10.0  # a retried task that runs for this long has recovered
QUIET_SECONDS = 10.0  # between two log lines about event loop callbacks that fail with the same type of exception
EXPECTED = (DiptychError, OSError, Refusal)  # errors that the caller turns into a response

Result = TypeVar("Result")


class Backoff(NamedTuple):
    """Seconds before a failed task is retried. The pause doubles after each failure."""

    first: float
    longest: float


DEFAULT_BACKOFF = Backoff(first=0.5, longest=30.0)


class Supervisor:
    """All background tasks of one service. Start every task with one of its methods."""

    def __init__(self, metrics: Metrics, backoff: Backoff = DEFAULT_BACKOFF) -> None:
        self._backoff = backoff
        self._failures = metrics.task_failures
        self._keys = count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reads: set[asyncio.Task[Any]] = set()
        self._failing: dict[int, str] = {}  # task key → message for /readyz
        self._pauses: dict[int, float] = {}  # task key → seconds before the next attempt
        self._callbacks_logged: dict[str, float] = {}  # type of exception → loop time of its last log line
        self._stopping = False

    @property
    def failing(self) -> list[str]:
        """One message per task that has failed and not recovered."""
        return list(self._failing.values())

    def watch_loop(self) -> None:
        """Log and count the exceptions of callbacks of the running event loop."""
        asyncio.get_running_loop().set_exception_handler(self._callback_failed)

    def run(self, name: str, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run `work` once, for a caller that awaits the task.

        An exception other than EXPECTED is also logged and counted.
        """
        task = self.start(name, work)
        task.add_done_callback(partial(self._ended, name))
        return task

    def retry(self, name: str, work: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        """Call `work` until it returns, with back-off after each exception. Cancel the task to end it."""
        key = next(self._keys)

        async def settling() -> None:
            settled = asyncio.get_running_loop().call_later(SETTLED_SECONDS, self._recovered, key)
            try:
                await work()
            finally:
                settled.cancel()

        return self.start(name, self._retried(name, key, settling))

    def repeat(self, name: str, work: Callable[[], Awaitable[object]], seconds: float) -> asyncio.Task[None]:
        """Call `work` every `seconds`, with back-off while it fails. Cancel the task to end it."""
        key = next(self._keys)

        async def rounds() -> None:
            while True:
                await asyncio.sleep(seconds)
                await work()
                self._recovered(key)

        return self.start(name, self._retried(name, key, rounds))

    async def read(self, work: Callable[[], Result]) -> Result:
        """Call `work` in a thread and return its result.

        Raises the exceptions of `work`, and DiptychError when the service stops first.
        """
        if self._stopping:
            raise DiptychError("The service is stopping.")
        task = self.start("store_reading", run_detached(work))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        try:
            return await task
        except asyncio.CancelledError as error:
            if not self._stopping or ((caller := asyncio.current_task()) and caller.cancelling()):
                raise
            raise DiptychError("The service is stopping.") from error

    def failed(self, name: str, error: BaseException) -> None:
        """Count a failure and log it with its traceback."""
        self._failures.labels(name).inc()
        LOG.error("the background task %s failed (%s)", name, describe_error(error), exc_info=error)

    def stop_reading(self) -> None:
        """Stop waiting for threads that read the store. Their callers get a DiptychError."""
        self._stopping = True
        for task in self._reads:
            task.cancel()

    async def close(self) -> None:
        """Cancel all tasks and wait for their end."""
        self._stopping = True
        while self._tasks:  # a task that ends may have started another one
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def start(self, name: str, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run `work` once, for a caller that handles all of its exceptions."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _ended(self, name: str, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, EXPECTED):
            self.failed(name, error)

    async def _retried(self, name: str, key: int, work: Callable[[], Awaitable[object]]) -> None:
        try:
            while not await self._attempt(name, key, work):
                await asyncio.sleep(self._pauses[key])
        finally:
            self._recovered(key)

    async def _attempt(self, name: str, key: int, work: Callable[[], Awaitable[object]]) -> bool:
        """Call `work` once; return whether the task is done."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # no exception may end the task
            pause = self._pauses.get(key, 0.0)
            self._pauses[key] = min(pause * 2, self._backoff.longest) if pause else self._backoff.first
            self._failing[key] = f"the background task {name} failed ({describe_error(error)}) and is retried"
            self.failed(name, error)
            return self._stopping
        return True

    def _recovered(self, key: int) -> None:
        self._failing.pop(key, None)
        self._pauses.pop(key, None)

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, OSError):  # a broken connection is not a fault of the service
            self._failures.labels("callback").inc()
        kind, now = type(error).__name__, loop.time()
        # limit the rate: one cause may raise thousands of exceptions per second
        if now - self._callbacks_logged.get(kind, float("-inf")) > QUIET_SECONDS:
            self._callbacks_logged[kind] = now
            LOG.error("a callback of the event loop failed: %s", context.get("message"), exc_info=error)


def describe_error(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
