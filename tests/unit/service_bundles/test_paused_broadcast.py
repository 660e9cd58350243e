"""Paused labels are sent to all open generations."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.bundles.paused_labels import PausedBroadcaster
from service.bundles.store_access import StoreAccess
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from tests.support.bundles import make_store


def test_a_change_is_sent_to_every_subscriber_once_and_again_after_a_failure(tmp_path: Path) -> None:
    """A generation would keep showing a paused label, or every poll of the store would send the list again."""
    store = make_store(tmp_path / "store", "one")
    received: list[tuple[str, tuple[str, ...]]] = []
    failures = [ZeroDivisionError("injected")]

    async def run() -> None:
        supervisor = Supervisor(Metrics(CollectorRegistry()))
        paused = PausedBroadcaster(StoreAccess(store.path, ()), 10, supervisor)

        def first() -> None:
            received.append(("first", paused.ids))

        def second() -> None:
            if paused.ids == ("b",) and failures:
                raise failures.pop()
            received.append(("second", paused.ids))

        paused.subscribe(first)
        paused.subscribe(second)
        await paused.read()
        assert received == []  # nothing is paused
        await paused.change(["a"], [])
        await paused.read()
        assert received == [("first", ("a",)), ("second", ("a",))]
        with pytest.raises(ZeroDivisionError):
            await paused.change(["b"], ["a"])
        received.clear()
        await paused.read()
        assert received == [("first", ("b",)), ("second", ("b",))]
        paused.unsubscribe(first)
        received.clear()
        await paused.change([], ["b"])
        assert received == [("second", ())]
        await supervisor.close()

    asyncio.run(run())
