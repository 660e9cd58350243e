"""Background tasks that fail are logged, counted and tried again."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from retrieval.errors import BundleError, DiptychError
from service.observe.detached_thread import run_detached
from service.observe.metrics import Metrics
from service.observe.supervisor import Backoff, Supervisor


def with_supervisor(work: Callable[[Supervisor, Metrics], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        supervisor = Supervisor(metrics, Backoff(first=0.001, longest=0.002))
        async with asyncio.timeout(30):
            await work(supervisor, metrics)
            await supervisor.close()

    asyncio.run(main())


def failures(metrics: Metrics, task: str) -> float:
    return metrics.registry.get_sample_value("diptych_task_failures_total", {"task": task}) or 0.0


def test_a_failing_task_is_tried_again_until_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    """One unexpected exception would permanently end the watcher of the store, or the replacement of an engine."""
    attempts, shown = [], []

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        async def work() -> None:
            attempts.append(1)
            shown.extend(supervisor.failing)
            if len(attempts) < 4:
                raise ZeroDivisionError("the cause\nand more")

        await supervisor.retry("engine_replacement", work)
        assert (len(attempts), failures(metrics, "engine_replacement"), supervisor.failing) == (4, 3, [])

    with caplog.at_level(logging.ERROR):
        with_supervisor(check)
    sentence = "the background task engine_replacement failed (ZeroDivisionError: the cause) and is retried"
    assert shown == [sentence] * 3
    assert [one.getMessage() for one in caplog.records] == [sentence.removesuffix(" and is retried")] * 3
    assert all(one.exc_info for one in caplog.records)


def test_a_repeated_task_outlives_its_failures() -> None:
    """A watcher would stop after its first unexpected exception."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        rounds, enough = [], asyncio.Event()

        async def work() -> None:
            rounds.append(list(supervisor.failing))
            if len(rounds) in (2, 3):
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
            if len(rounds) == 6:
                enough.set()

        task = supervisor.repeat("store_watch", work, 0.001)
        await enough.wait()
        assert [bool(one) for one in rounds] == [False, False, True, True, False, False]
        assert failures(metrics, "store_watch") == 2
        task.cancel()

    with_supervisor(check)


@pytest.mark.parametrize(("error", "counted"), [(BundleError("damaged"), 0), (OSError("full"), 0), (KeyError("x"), 1)])
def test_the_caller_gets_the_error_and_unexpected_errors_are_counted(error: Exception, counted: int) -> None:
    """An activation would end without an answer, or a bug in it would count as a damaged bundle."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        async def work() -> None:
            raise error

        with pytest.raises(type(error)):
            await supervisor.run("bundle_loading", work())
        await asyncio.sleep(0)
        assert failures(metrics, "bundle_loading") == counted

    with_supervisor(check)


def test_a_stop_does_not_wait_for_a_thread_that_reads_the_store() -> None:
    """A dead file server would prevent the service from ending."""
    held = threading.Event()

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def read() -> bool:
            loop.call_soon_threadsafe(begun.set)
            return held.wait(60)

        reading = asyncio.ensure_future(supervisor.read(read))
        await begun.wait()
        supervisor.stop_reading()
        with pytest.raises(DiptychError, match="stopping"):
            await reading
        with pytest.raises(DiptychError, match="stopping"):
            await supervisor.read(lambda: None)

    try:
        with_supervisor(check)
    finally:
        held.set()


def test_a_thread_that_raises_stop_iteration_still_ends_the_wait() -> None:
    """The caller of the thread would wait for ever."""

    async def main() -> None:
        async with asyncio.timeout(30):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await run_detached(lambda: next(iter(())))

    asyncio.run(main())


def test_a_failing_callback_of_the_loop_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """An error in a timer or a connection callback would not be logged."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        supervisor.watch_loop()
        asyncio.get_running_loop().call_soon(lambda: {}["missing"])
        await asyncio.sleep(0)
        assert failures(metrics, "callback") == 1

    with_supervisor(check)
    assert "a callback of the event loop failed" in caplog.text


def test_a_broken_connection_does_not_hide_another_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A client that disconnects at the wrong moment would hide an error of the service from the log."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        def fail(error: Exception) -> None:
            raise error

        supervisor.watch_loop()
        for error in (ConnectionResetError(), KeyError("a"), KeyError("b")):
            asyncio.get_running_loop().call_soon(fail, error)
        while failures(metrics, "callback") < 2:
            await asyncio.sleep(0)

    with_supervisor(check)
    assert [one.exc_info and one.exc_info[0] for one in caplog.records] == [ConnectionResetError, KeyError]


def test_closing_waits_for_tasks_that_begin_meanwhile() -> None:
    """An engine would outlive the service because the task that ends it began while the service was closed."""

    async def check(supervisor: Supervisor, _: Metrics) -> None:
        begun: list[asyncio.Task[None]] = []

        async def wait() -> None:
            await asyncio.Event().wait()

        async def begin_another() -> None:
            try:
                await wait()
            finally:
                begun.append(supervisor.start("generation_closing", wait()))

        supervisor.start("bundle_loading", begin_another())
        await asyncio.sleep(0)
        await supervisor.close()
        assert [task.done() for task in begun] == [True]

    with_supervisor(check)
