"""Detection of an engine that hangs."""

import asyncio
from collections.abc import Callable

from service.engine.watchdog import Watchdog


class TimerLoop:
    """A loop whose timers the test fires itself."""

    def __init__(self) -> None:
        self.timers: list[TimerLoop.Timer] = []

    class Timer:
        """A timer as `call_later` returns it."""

        def __init__(self, callback: Callable[[], None]) -> None:
            self.callback: Callable[[], None] | None = callback

        def cancel(self) -> None:
            self.callback = None

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(self.Timer(callback))
        return self.timers[-1]

    def fire(self) -> None:
        """Run the callbacks of all timers that are not cancelled."""
        for timer in self.timers:
            if timer.callback:
                timer.callback()


def test_a_thread_that_hangs_is_noticed_while_another_answers() -> None:
    """One of two threads would hang forever, with every request that it reads, while the other one works."""

    async def run() -> None:
        hung = asyncio.Event()
        watchdog = Watchdog(0.02, hung.set)
        watchdog.update(1)

        async def answer_others() -> None:
            while True:
                await asyncio.sleep(0)
                watchdog.update(1)  # batches 2, 3, 4, … are answered meanwhile

        others = asyncio.ensure_future(answer_others())
        async with asyncio.timeout(60):
            await hung.wait()
        others.cancel()

    asyncio.run(run())


def test_an_engine_that_answers_or_idles_is_not_killed() -> None:
    """A busy or an idle engine would be killed."""
    loop, kills = TimerLoop(), list[int]()
    watchdog = Watchdog(10, lambda: kills.append(1), loop)
    for number in range(100):
        watchdog.update(number)
    watchdog.update(None)
    loop.fire()
    assert not kills
    watchdog.update(7)
    loop.fire()
    assert kills == [1]
