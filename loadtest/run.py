"""One run: requests leave when they are due, whatever has become of those before them."""

import asyncio
import gc
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from loadtest.alarm import Alarm, now
from loadtest.arrivals import schedule
from loadtest.client import Client, Ended
from loadtest.plan import Plan
from loadtest.report import Latencies, Report, Switching, SwitchMade, summarize
from loadtest.switching import Switcher
from loadtest.tally import Tally
from loadtest.target import Target
from retrieval.errors import BadInput

LEAD = 0.05  # seconds between the decision to begin and the first moment of the schedule
WARM = 16  # connections opened beforehand
BUNCH = 32  # overdue requests sent before answers are read again
TICK, SHOWN_EVERY = 0.1, 1.0  # seconds
GRACE = 1.0  # seconds for what is under way when a person ends the run
SPARE_FILES = 64


class Snapshot(NamedTuple):
    """Where a run is."""

    seconds: float
    tally: Tally
    in_flight: int


Progress = Callable[[Snapshot], None]


async def run(
    target: Target, bodies: Sequence[bytes], plan: Plan, stop: asyncio.Event, progress: Progress | None = None,
    switcher: Switcher | None = None,
) -> Report:  # fmt: skip
    """Send `bodies` in turn by the plan, and report; `stop` ends it early. Raises BadInput when files are too few."""
    _allow_files(plan.connections)
    return await _Run(target, bodies, plan, stop, switcher).go(progress)


class _Run:
    def __init__(
        self, target: Target, bodies: Sequence[bytes], plan: Plan, stop: asyncio.Event, switcher: Switcher | None
    ) -> None:
        self._plan, self._target, self._stop, self._switcher = plan, target, stop, switcher
        self._messages = [target.request("/predict", body) for body in bodies]
        self._client = Client(target, plan.connections, plan.timeout, self._ended)
        self._tally = Tally(plan.rate, plan.duration)
        self._times = schedule(plan.rate, plan.duration, plan.arrivals)
        self._start = 0.0
        self._next: float | None = None
        self._number = 0

    async def go(self, progress: Progress | None) -> Report:
        await self._client.warm_up(WARM)
        gc.collect()
        gc.freeze()  # a full collection would stop the generator for as long as a request takes
        busy = -time.process_time()
        switching = None
        self._start = now() + LEAD
        try:
            if self._switcher:
                switching = asyncio.create_task(self._switcher.run(self._start, self._plan.duration))
            with Alarm(self._due) as self._alarm:
                self._next = next(self._times)
                self._set_alarm()
                await self._until_sent(progress)
            busy += time.process_time()
            elapsed = max(now() - self._start, 1e-9)
            if interrupted := self._stop.is_set():
                self._tally.stop(elapsed)
            await self._until_answered(GRACE if interrupted else None, switching)
        finally:
            gc.unfreeze()
            await _cancelled(switching)
            await self._client.close()
        return summarize(
            self._plan, self._tally, url=self._target.url, queries=len(self._messages), busy=busy / elapsed,
            connections=self._client.opened, waited=self._client.waited, switching=self._switched(),
            interrupted=interrupted,
        )  # fmt: skip

    def _due(self) -> None:
        """Send what is due by now, and set the alarm for what comes next."""
        for _ in range(BUNCH):
            if self._next is None or (late := now() - self._start - self._next) < 0:
                break
            self._tally.send(self._next, late)
            self._client.ask(self._messages[self._number % len(self._messages)], self._start + self._next)
            self._number += 1
            self._next = next(self._times, None)
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._next is not None:
            self._alarm.set(self._start + self._next)

    def _ended(self, ended: Ended) -> None:
        switching = self._switcher is not None and self._switcher.touches(ended.due)
        self._tally.end(ended, self._start, switching=switching)

    async def _until_sent(self, progress: Progress | None) -> None:
        """Until the last request has gone out and the time is over, or somebody says stop."""
        shown = self._start
        end = self._start + self._plan.duration
        while not self._stop.is_set() and (self._next is not None or now() < end):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TICK)
            self._client.expire()
            if progress and now() - shown >= SHOWN_EVERY:
                shown = now()
                progress(Snapshot(shown - self._start, self._tally, len(self._client.in_flight)))

    async def _until_answered(self, grace: float | None, switching: "asyncio.Task[None] | None") -> None:
        """Until every request has ended, and a change of bundle that was under way."""
        last = now() + (self._plan.timeout if grace is None else grace)
        while now() < last and (self._client.in_flight or (switching and not switching.done())):
            await asyncio.sleep(0.01)
            self._client.expire()

    def _switched(self) -> Switching | None:
        if self._switcher is None:
            return None
        made = [
            SwitchMade(
                bundle=one.bundle, began_seconds=round(one.began, 3), failure=one.failure,
                ended_seconds=None if one.ended is None else round(one.ended, 3),
            )
            for one in self._switcher.switches
        ]  # fmt: skip
        during, steady = Latencies.of(self._tally.switching), Latencies.of(self._tally.steady)
        return Switching(switches=tuple(made), during=during, steady=steady)


async def _cancelled(task: "asyncio.Task[None] | None") -> None:
    if task:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _allow_files(connections: int) -> None:
    """As many open files as there may be connections. Raises BadInput when the system refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BadInput(f"--connections is {connections:,}; this process may have {hard:,} open files (ulimit -Hn).")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
