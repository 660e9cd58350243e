"""A share of the time: a process group is stopped and continued in turn."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from service.engine.cpu_throttle import PERIOD, Ration, Traffic, no_traffic
from tests.support.service import process_state

STOPPED = "T"


@pytest.fixture
def engine() -> Iterator["subprocess.Popen[bytes]"]:
    """Something that runs, in a group of its own."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
    yield process
    process.kill()
    process.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(PERIOD / 50)


def test_it_is_stopped_and_continued_while_there_is_traffic(engine: "subprocess.Popen[bytes]") -> None:
    """If it fails, loading a bundle slows every answer, or never ends."""

    async def run() -> float:
        with Ration(engine.pid, 0.5, lambda: True) as ration:
            for _ in range(3):
                await until(lambda: process_state(engine.pid) == STOPPED)
                await until(lambda: process_state(engine.pid) != STOPPED)
            await until(lambda: process_state(engine.pid) == STOPPED)  # the end must find it stopped
        await until(lambda: process_state(engine.pid) != STOPPED)
        await asyncio.sleep(3 * PERIOD)
        assert process_state(engine.pid) != STOPPED
        return ration.rested

    rests = asyncio.run(run()) / (PERIOD / 2)
    assert rests >= 3 - 1e-6  # more where the system was slow to stop it, and a rest was over before it was seen
    assert rests == pytest.approx(round(rests))


@pytest.mark.parametrize(("share", "traffic"), [(0.1, no_traffic), (1, lambda: True)])
def test_it_has_all_the_time_when_nobody_asks_or_so_it_is_wanted(
    engine: "subprocess.Popen[bytes]", share: float, traffic: Traffic
) -> None:
    """If it fails, a calm service takes ten times as long to change its bundle, or the setting cannot be turned off."""
    seen = []

    async def run() -> float:
        with Ration(engine.pid, share, traffic) as ration:
            for _ in range(40):
                await asyncio.sleep(PERIOD / 10)
                seen.append(process_state(engine.pid))
        return ration.rested

    assert asyncio.run(run()) == 0
    assert STOPPED not in seen


def test_a_process_that_has_ended_troubles_nobody(engine: "subprocess.Popen[bytes]") -> None:
    """If it fails, a bundle that cannot be opened fills the log with errors that are none."""
    errors: list[dict[str, object]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        with Ration(engine.pid, 0.5, lambda: True):
            engine.send_signal(signal.SIGKILL)
            engine.wait()
            await asyncio.sleep(3 * PERIOD)

    asyncio.run(run())
    assert not errors


def test_rest_does_not_count_as_loading(engine: "subprocess.Popen[bytes]") -> None:
    """If it fails, a large bundle is never served while clients ask, or an engine that hangs is waited for in vain."""

    async def run() -> None:
        ready = asyncio.get_running_loop().create_future()
        with Ration(engine.pid, 0.05, lambda: True) as ration:
            asyncio.get_running_loop().call_later(40 * PERIOD, ready.set_result, None)
            await ration.wait(ready, 30 * PERIOD)  # it runs for a twentieth of that; a busy machine may hold this up
        with Ration(engine.pid, 1, no_traffic) as ration, pytest.raises(TimeoutError):
            await ration.wait(asyncio.get_running_loop().create_future(), PERIOD)

    asyncio.run(run())
