"""One run: send each request when it is due, independent of earlier ones."""

import asyncio
import gc
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from loadtest.arrivals import arrival_times
from loadtest.client import LoadClient, RequestOutcome
from loadtest.plan import Plan
from loadtest.report import Report, summarize
from loadtest.run_stats import RunStats
from loadtest.switching import Switcher
from loadtest.target import PREDICT_PATH, Target
from loadtest.timer import PreciseTimer, now
from retrieval.errors import BadInput

LEAD_SECONDS = 0.05  # from the start of the clock to time zero of the schedule
WARM_CONNECTIONS = 16  # opened before the run
BURST = 32  # overdue requests sent before answers are read again
TICK_SECONDS, SNAPSHOT_SECONDS = 0.1, 1.0
STOP_SECONDS = 1.0  # for requests in flight when the run is interrupted
SPARE_FILES = 64


class Snapshot(NamedTuple):
    """The state of a run in progress."""

    seconds: float
    stats: RunStats
    in_flight: int


OnSnapshot = Callable[[Snapshot], None]


async def run(
    target: Target, bodies: Sequence[bytes], plan: Plan, stop: asyncio.Event, on_snapshot: OnSnapshot | None = None,
    switcher: Switcher | None = None,
) -> Report:  # fmt: skip
    """Send `bodies` in turn as planned and report; `stop` ends the run early.

    Raises BadInput if the process may not open enough files.
    """
    _raise_file_limit(plan.connections)
    return await _Run(target, bodies, plan, stop, switcher).execute(on_snapshot)


class _Run:
    def __init__(
        self, target: Target, bodies: Sequence[bytes], plan: Plan, stop: asyncio.Event, switcher: Switcher | None
    ) -> None:
        self._plan, self._target, self._stop, self._switcher = plan, target, stop, switcher
        self._messages = [target.request(PREDICT_PATH, body) for body in bodies]
        self._client = LoadClient(target, plan.connections, plan.timeout, self._on_outcome)
        self._stats = RunStats(plan.rate, plan.duration)
        self._times = arrival_times(plan.rate, plan.duration, plan.arrivals)
        self._start = 0.0
        self._next: float | None = None
        self._number = 0

    async def execute(self, on_snapshot: OnSnapshot | None) -> Report:
        await self._client.warm_up(WARM_CONNECTIONS)
        gc.collect()
        gc.freeze()  # a full collection would delay requests by milliseconds
        cpu = -time.process_time()
        switching = None
        self._start = now() + LEAD_SECONDS
        try:
            if self._switcher:
                switching = asyncio.create_task(self._switcher.run(self._start, self._plan.duration))
            with PreciseTimer(self._send_due) as self._timer:
                self._next = next(self._times)
                self._set_timer()
                await self._until_sent(on_snapshot)
            cpu += time.process_time()
            elapsed = max(now() - self._start, 1e-9)
            if interrupted := self._stop.is_set():
                self._stats.cut(elapsed)
            await self._until_answered(STOP_SECONDS if interrupted else self._plan.timeout, switching)
        finally:
            gc.unfreeze()
            await _cancel(switching)
            await self._client.close()
        return summarize(
            self._plan, self._stats, url=self._target.url, queries=len(self._messages), cpu=cpu / elapsed,
            connections=self._client.opened, waited=self._client.waited, interrupted=interrupted,
            switches=self._switcher.switches if self._switcher else None,
        )  # fmt: skip

    def _send_due(self) -> None:
        """Send the requests that are due and set the timer for the next one."""
        for _ in range(BURST):
            if self._next is None or (lag := now() - self._start - self._next) < 0:
                break
            self._stats.add_sent(self._next, lag)
            self._client.send(self._messages[self._number % len(self._messages)], self._start + self._next)
            self._number += 1
            self._next = next(self._times, None)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._next is not None:
            self._timer.set(self._start + self._next)

    def _on_outcome(self, outcome: RequestOutcome) -> None:
        switching = self._switcher is not None and self._switcher.overlaps(outcome.due)
        self._stats.add_outcome(outcome, self._start, switching=switching)

    async def _until_sent(self, on_snapshot: OnSnapshot | None) -> None:
        """Wait until the last request is sent and the duration is over, or until the run is stopped."""
        shown = self._start
        end = self._start + self._plan.duration
        while not self._stop.is_set() and (self._next is not None or now() < end):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TICK_SECONDS)
            self._client.expire()
            if on_snapshot and now() - shown >= SNAPSHOT_SECONDS:
                shown = now()
                on_snapshot(Snapshot(shown - self._start, self._stats, len(self._client.in_flight)))

    async def _until_answered(self, seconds: float, switching: "asyncio.Task[None] | None") -> None:
        """Wait, so many seconds at most, until all requests and a switch in progress have ended."""
        deadline = now() + seconds
        while now() < deadline and (self._client.in_flight or (switching and not switching.done())):
            await asyncio.sleep(0.01)
            self._client.expire()


async def _cancel(task: "asyncio.Task[None] | None") -> None:
    if task:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _raise_file_limit(connections: int) -> None:
    """Allow as many open files as connections. Raises BadInput if the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BadInput(
            f"--connections is {connections:,}, but this process may open only {hard:,} files. Lower it, or raise "
            "`ulimit -Hn`."
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
