"""The CPU throttle: a process group is stopped and continued in turn."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from service.engine.cpu_throttle import PERIOD, CpuThrottle
from service.engine.load_policy import FULL_SPEED, IsBusy, LoadPolicy, never_busy
from tests.support.service import process_state

STOPPED = "T"


def policy(cpu_share: float, is_busy: IsBusy = lambda: True) -> LoadPolicy:
    return LoadPolicy(True, cpu_share, is_busy)


class CountedCalls:
    """An `is_busy` function that counts its calls, which the throttle makes once per period."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bool:
        self.count += 1
        return True


@pytest.fixture
def engine() -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process in a separate process group."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
    yield process
    process.kill()
    process.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(PERIOD / 50)


async def later_timer() -> None:
    """Wait for a timer that fires after every timer that a throttle has set now."""
    loop = asyncio.get_running_loop()
    fired = loop.create_future()
    loop.call_later(3 * PERIOD, fired.set_result, None)
    await fired


def test_it_is_stopped_and_continued_while_requests_arrive(engine: "subprocess.Popen[bytes]") -> None:
    """Loading a bundle would slow every answer, or never end."""

    async def run() -> float:
        is_busy = CountedCalls()
        with CpuThrottle(engine.pid, policy(0.5, is_busy)) as throttle:
            for _ in range(3):
                await until(lambda: process_state(engine.pid) == STOPPED)
                await until(lambda: process_state(engine.pid) != STOPPED)
            await until(lambda: process_state(engine.pid) == STOPPED)  # the end must find it stopped
        await until(lambda: process_state(engine.pid) != STOPPED)
        calls = is_busy.count
        await later_timer()
        assert is_busy.count == calls
        assert process_state(engine.pid) != STOPPED
        return throttle.stopped_seconds

    stops = asyncio.run(run()) / (PERIOD / 2)
    assert stops >= 3 - 1e-6  # more where the system was slow to stop it, and a stop was over before it was seen
    assert stops == pytest.approx(round(stops))


@pytest.mark.parametrize("chosen", [policy(0.1, never_busy), policy(1), FULL_SPEED])
def test_it_is_never_stopped_without_requests_or_with_a_share_of_one(
    engine: "subprocess.Popen[bytes]", chosen: LoadPolicy
) -> None:
    """A calm service would take ten times as long to switch, or the throttle could not be disabled."""

    async def run() -> float:
        with CpuThrottle(engine.pid, chosen) as throttle:
            await later_timer()
            assert process_state(engine.pid) != STOPPED
        return throttle.stopped_seconds

    assert asyncio.run(run()) == 0


def test_a_process_that_has_ended_is_no_error(engine: "subprocess.Popen[bytes]") -> None:
    """A bundle that cannot be opened would fill the log with further errors."""
    errors: list[dict[str, object]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        is_busy = CountedCalls()
        with CpuThrottle(engine.pid, policy(0.5, is_busy)):
            engine.send_signal(signal.SIGKILL)
            engine.wait()
            calls = is_busy.count
            await until(lambda: is_busy.count >= calls + 3)

    asyncio.run(run())
    assert not errors


def test_stopped_time_does_not_count_as_loading(engine: "subprocess.Popen[bytes]") -> None:
    """A large bundle would never be served under traffic, or an engine that hangs would be waited for forever."""

    async def run() -> None:
        ready = asyncio.get_running_loop().create_future()
        with CpuThrottle(engine.pid, policy(0.05)) as throttle:
            asyncio.get_running_loop().call_later(40 * PERIOD, ready.set_result, None)
            # it runs for a twentieth of that; a busy machine may delay this
            await throttle.wait(ready, 30 * PERIOD)
        with CpuThrottle(engine.pid, FULL_SPEED) as throttle, pytest.raises(TimeoutError):
            await throttle.wait(asyncio.get_running_loop().create_future(), PERIOD)

    asyncio.run(run())
