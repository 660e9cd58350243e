"""Run blocking work in a daemon thread, so that the service can stop while a file server does not respond."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

LOG = logging.getLogger("diptych")
Result = TypeVar("Result")


async def run_detached(work: Callable[[], Result]) -> Result:
    """Call `work` in a daemon thread; return its result or raise its exception.

    Cancellation and the end of the process do not stop `work`: it must tolerate both.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            if error is not None:
                LOG.warning("work in a thread failed after its caller had stopped waiting: %s", error)
        elif isinstance(error, StopIteration):  # a future cannot hold it, and the caller would wait for ever
            done.set_exception(RuntimeError(f"work in a thread raised {error!r}"))
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # what `work` returned, None included

    def run() -> None:
        result: Result | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # raised again in the caller
            failure = error
        with suppress(RuntimeError):  # the loop has been closed: the service has ended
            loop.call_soon_threadsafe(settle, result, failure)

    Thread(target=run, daemon=True).start()
    return await done
