"""The repeated reads of the store, and the order of changes of bundle."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from retrieval.errors import BundleError
from service.bundles.generation import Generation
from service.bundles.store_watcher import StoreRead, StoreWatcher
from service.bundles.switch_queue import SwitchQueue
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor

ONE, TWO, THREE = Path("bundles/one"), Path("bundles/two"), Path("bundles/three")


def in_loop(work: Callable[[Supervisor, Metrics], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        supervisor = Supervisor(metrics)
        async with asyncio.timeout(60):
            await work(supervisor, metrics)
            await supervisor.close()

    asyncio.run(main())


def failures(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("diptych_task_failures_total", {"task": "store_watch"}) or 0.0


def test_every_failure_of_a_read_is_reported_and_polling_continues(caplog: pytest.LogCaptureFixture) -> None:
    """A store that cannot be read would not be read again, or every poll would log a line."""
    errors = [BundleError("CURRENT is damaged."), BundleError("CURRENT is damaged."), OSError("gone"), KeyError("bug")]
    outcomes: list[Exception | str] = [*errors, "found"]

    async def read() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        reading = StoreRead("it cannot be read", read, supervisor, metrics)
        problems = []
        for _ in errors:
            assert await reading.read() is None
            problems.append(reading.problem)
        assert problems == [
            "it cannot be read (CURRENT is damaged)",
            "it cannot be read (CURRENT is damaged)",
            "it cannot be read (gone)",
            "it cannot be read (KeyError: 'bug')",
        ]
        assert failures(metrics) == 4
        assert await reading.read() == "found"
        assert reading.problem is None

    with caplog.at_level(logging.INFO):
        in_loop(check)
    messages = [one.getMessage() for one in caplog.records]
    assert len(messages) == 4
    assert messages[-1] == "resolved: it cannot be read"


def test_a_store_that_does_not_answer_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A dead file server would end the polling silently: the service would look as if nothing had changed."""
    held = threading.Event()

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        async def read() -> bool:
            return await supervisor.read(lambda: held.wait(60))

        reading = StoreRead("it cannot be read", read, supervisor, metrics, timeout=0.05)
        assert await reading.read() is None
        assert reading.problem == "it cannot be read (no answer for 0.05 s)"
        assert await reading.read() is None
        assert reading.problem == "it cannot be read (no answer for 0.1 s)"
        held.set()
        for _ in range(20):
            if await reading.read():
                break
        assert reading.problem is None

    in_loop(check)


def test_the_active_bundle_is_followed_once_and_again_on_request() -> None:
    """A broken bundle would be loaded again and again, or one whose loading was pre-empted never again."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        named, followed = [ONE], list[Path]()

        async def read_active() -> Path | None:
            return named[0]

        async def read_paused() -> None:
            return None

        watch = StoreWatcher(read_active, read_paused, followed.append, supervisor, metrics)
        watch.active = ONE
        await watch.check()
        named[0] = TWO
        await watch.check()
        await watch.check()
        assert followed == [TWO]
        watch.try_again(ONE)  # it is not the one that was followed last
        await watch.check()
        assert followed == [TWO]
        watch.try_again(TWO)
        await watch.check()
        assert followed == [TWO, TWO]
        watch.begin_admin_change()
        watch.try_again(TWO)
        await watch.check()  # named before the order
        assert followed == [TWO, TWO]
        named[0] = THREE
        await watch.check()
        assert followed == [TWO, TWO, THREE]
        watch.end_admin_change()

    in_loop(check)


async def never() -> Generation:
    await asyncio.Event().wait()
    raise AssertionError("an event that is never set was set")


async def immediately() -> Generation:
    return cast(Generation, "generation")


async def change(
    queue: SwitchQueue, bundle: str, work: Callable[[], Coroutine[Any, Any, Generation]], urgent: bool = False
) -> Generation:
    async with queue.change(bundle, urgent):
        return await queue.load(bundle, work())


def test_the_last_change_wins() -> None:
    """Changes that are requested while a bundle is loading would wait for it, or all be loaded in turn."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        queue = SwitchQueue(supervisor)
        first, second, third = (
            asyncio.ensure_future(change(queue, name, work))
            for name, work in (("one", never), ("two", never), ("three", immediately))
        )
        assert await third == "generation"
        for earlier in (first, second):
            with pytest.raises(Refusal, match="bundle three was requested later"):
                await earlier
        assert queue.preparing is None

    in_loop(check)


def test_the_same_bundle_is_not_loaded_twice_except_for_a_rollback() -> None:
    """An administrator who repeats a request would restart the loading each time."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        queue = SwitchQueue(supervisor)
        first = asyncio.ensure_future(change(queue, "one", never))
        while queue.preparing is None:
            await asyncio.sleep(0)
        with pytest.raises(Refusal, match="bundle one is being prepared"):
            await change(queue, "one", never)
        assert await change(queue, "one", immediately, urgent=True) == "generation"
        with pytest.raises(Refusal):
            await first

    in_loop(check)


def test_a_stop_cancels_the_loading_and_refuses_further_changes() -> None:
    """A stopping service would start to load a bundle."""

    async def check(supervisor: Supervisor, metrics: Metrics) -> None:
        queue = SwitchQueue(supervisor)
        loading = asyncio.ensure_future(change(queue, "one", never))
        while queue.preparing is None:
            await asyncio.sleep(0)
        queue.stop()
        with pytest.raises(Refusal, match="the service is stopping"):
            await loading
        with pytest.raises(Refusal, match="the service is stopping"):
            await change(queue, "two", immediately)

    in_loop(check)
