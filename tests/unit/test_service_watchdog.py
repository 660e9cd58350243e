"""Whether an engine still answers."""

import asyncio

from service.watchdog import Watchdog


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
        watchdog = Watchdog(0.2, lambda: barks.append(True))
        for number in range(400):
            watchdog.saw(number)
            await asyncio.sleep(0.001)
        watchdog.saw(None)
        await asyncio.sleep(0.3)

    barks: list[bool] = []
    asyncio.run(run())
    assert not barks
