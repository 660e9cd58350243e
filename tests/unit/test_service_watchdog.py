"""Whether an engine still answers."""

import asyncio

import pytest

from service.engine.watchdog import Watchdog


def test_a_lane_that_hangs_is_noticed_while_another_answers() -> None:
    """Half of an engine would hang for ever, with every request that came to it, since the other half goes on."""

    async def run() -> None:
        barked = asyncio.Event()
        watchdog = Watchdog(0.02, barked.set)
        watchdog.saw(1)
        async with asyncio.timeout(10):
            while not barked.is_set():
                await asyncio.sleep(0.001)
                watchdog.saw(1)  # 2, 3, 4, … are answered meanwhile

    asyncio.run(run())


def test_an_engine_that_answers_or_idles_is_left_alone() -> None:
    """An engine at work, or with nothing to do, would be killed."""

    async def run() -> None:
        watchdog, loop = Watchdog(10, pytest.fail), asyncio.get_running_loop()
        for number in range(100):
            watchdog.saw(number)
        watchdog.saw(None)
        barks = [one for one in loop._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
        assert not barks

    asyncio.run(run())
