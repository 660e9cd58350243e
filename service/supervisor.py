"""Run every background task of the service, so that none of them can end or fail without anybody seeing it.

An unexpected exception is logged with the task's name, counted, shown by /readyz and, where nobody waits for the
result, tried again after a pause. docs/decisions/0067 lists the tasks and what a failure of each does.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import count
from typing import Any, TypeVar

from retrieval.errors import DiptychError
from service.aside import aside
from service.errors import Refusal
from service.metrics import Metrics

LOG = logging.getLogger("diptych")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a failed task is tried again; each pause is twice the last
SETTLED_SECONDS = 10.0  # a task that was tried again and does not return has recovered after this
QUIET_SECONDS = 10.0  # between two log lines about failing callbacks of the event loop
EXPECTED = (DiptychError, OSError, Refusal)  # errors that a caller turns into an answer

Result = TypeVar("Result")


class Supervisor:
    """Every background task of one service. Tasks are started here and nowhere else."""

    def __init__(self, metrics: Metrics) -> None:
        self._failures = metrics.task_failures
        self._keys = count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reads: set[asyncio.Task[Any]] = set()
        self._failing: dict[int, str] = {}  # by the task's key: the sentence for /readyz
        self._pauses: dict[int, float] = {}  # by the task's key: seconds before it is tried again
        self._callbacks_logged: dict[str, float] = {}  # by the type of the exception: when one was logged last
        self._stopping = False

    @property
    def failing(self) -> list[str]:
        """Return one sentence per task that failed and has not succeeded since."""
        return list(self._failing.values())

    def watch_loop(self) -> None:
        """Log and count exceptions in callbacks of the running event loop."""
        asyncio.get_running_loop().set_exception_handler(self._callback_failed)

    def run(self, name: str, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run `work` once; the caller awaits the task and gets its result or exception.

        An exception that is not one of EXPECTED is logged and counted as well.
        """
        task = self.start(name, work)
        task.add_done_callback(partial(self._ended, name))
        return task

    def retry(self, name: str, work: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        """Call `work` until it returns; after an exception wait and call it again. Cancel the task to end it."""
        key = next(self._keys)

        async def settling() -> None:
            settled = asyncio.get_running_loop().call_later(SETTLED_SECONDS, self._recovered, key)
            try:
                await work()
            finally:
                settled.cancel()

        return self.start(name, self._retried(name, key, settling))

    def repeat(self, name: str, work: Callable[[], Awaitable[object]], seconds: float) -> asyncio.Task[None]:
        """Call `work` every `seconds` for ever, less often while it fails. Cancel the task to end it."""
        key = next(self._keys)

        async def rounds() -> None:
            while True:
                await asyncio.sleep(seconds)
                await work()
                self._recovered(key)

        return self.start(name, self._retried(name, key, rounds))

    async def read(self, work: Callable[[], Result]) -> Result:
        """Call `work` in a thread. Raises what it raises, and DiptychError when the service stops meanwhile."""
        if self._stopping:
            raise DiptychError("The service is stopping.")
        task = self.start("store_reading", aside(work))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        try:
            return await task
        except asyncio.CancelledError as error:
            if not self._stopping or ((caller := asyncio.current_task()) and caller.cancelling()):
                raise
            raise DiptychError("The service is stopping.") from error

    def failed(self, name: str, error: BaseException) -> None:
        """Count a failure, and log it with its traceback."""
        self._failures.labels(name).inc()
        LOG.error("the background task %s failed (%s)", name, described(error), exc_info=error)

    def stop_reading(self) -> None:
        """Stop waiting for threads that read the store; those who wait get a DiptychError."""
        self._stopping = True
        for task in self._reads:
            task.cancel()

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        self._stopping = True
        while self._tasks:  # a task that ends may have started another one
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def start(self, name: str, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run `work` once for a caller that handles every exception of it."""
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
        """Call `work`; return whether the task has come to its end."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # whatever it is, the task must not end
            pause = self._pauses.get(key, 0.0)
            self._pauses[key] = min(pause * 2, LONGEST_PAUSE) if pause else FIRST_PAUSE
            self._failing[key] = f"the background task {name} failed ({described(error)}) and is tried again"
            self.failed(name, error)
            return self._stopping
        return True

    def _recovered(self, key: int) -> None:
        self._failing.pop(key, None)
        self._pauses.pop(key, None)

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, OSError):  # a broken connection is no fault of the service
            self._failures.labels("callback").inc()
        kind, now = type(error).__name__, loop.time()
        # one cause may fail thousands of times a second
        if now - self._callbacks_logged.get(kind, float("-inf")) > QUIET_SECONDS:
            self._callbacks_logged[kind] = now
            LOG.error("a callback of the event loop failed: %s", context.get("message"), exc_info=error)


def described(error: BaseException) -> str:
    """Return the error's type and the first line of its message."""
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
