"""Statistics of a run while it goes on: counters and histograms of bounded size."""

import math
import re
from collections import Counter, defaultdict

from loadtest.client import RequestOutcome
from loadtest.histogram import Histogram

OK = "200"
MAX_WINDOWS, MIN_WINDOW_SECONDS, MIN_REQUESTS_PER_WINDOW = 60, 0.25, 50
STAGE = re.compile(rb"([\w-]+)\s*;\s*dur=([0-9.]+)")


class TimeWindow:
    """Requests that were due in one part of the run."""

    def __init__(self) -> None:
        self.sent = 0
        self.failed = 0
        self.latency = Histogram()


class RunStats:
    """All requests of a run, by outcome, by time window, by service stage and by bundle.

    Times are seconds from the start of the run. Latencies count from when a request was due.
    """

    def __init__(self, rate: float, duration: float) -> None:
        self.duration = duration
        self.width = max(MIN_WINDOW_SECONDS, MIN_REQUESTS_PER_WINDOW / rate, duration / MAX_WINDOWS)
        self.windows = [TimeWindow() for _ in range(math.ceil(duration / self.width))]
        self.lag = Histogram()
        self.outcomes: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.stages: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.bundles: Counter[str] = Counter()
        self.steady, self.switching = Histogram(), Histogram()
        self.in_time = 0  # answered with 200 before the sending ended

    @property
    def sent(self) -> int:
        """Number of requests sent."""
        return self.lag.count

    @property
    def failed(self) -> int:
        """Number of requests that ended without a 200."""
        return sum(latency.count for kind, latency in self.outcomes.items() if kind != OK)

    def add_sent(self, due: float, lag: float) -> None:
        """Count a request that left `lag` seconds after it was due."""
        self.lag.record(lag)
        self._window(due).sent += 1

    def add_outcome(self, outcome: RequestOutcome, start: float, *, switching: bool) -> None:
        """Count an outcome of the run that began at `start`; `switching` if it overlapped a switch of bundles."""
        latency, due = outcome.done - outcome.due, outcome.due - start
        self.outcomes[outcome.kind].record(latency)
        if outcome.kind != OK:
            self._window(due).failed += 1
            return
        self._window(due).latency.record(latency)
        (self.switching if switching else self.steady).record(latency)
        self.in_time += outcome.done - start <= self.duration
        if outcome.bundle:
            self.bundles[outcome.bundle.decode("latin-1")] += 1
        for stage, milliseconds in parse_server_timing(outcome.server_timing):
            self.stages[stage].record(milliseconds / 1e3)

    def cut(self, at: float) -> None:
        """End the run early, at this time."""
        self.duration = min(self.duration, at)
        del self.windows[math.ceil(self.duration / self.width) :]

    def window_seconds(self, number: int) -> float:
        """Return the length of a window; the last one may be shorter."""
        return max(1e-9, min(self.width, self.duration - number * self.width))

    def _window(self, due: float) -> TimeWindow:
        return self.windows[min(int(due / self.width), len(self.windows) - 1)]


def parse_server_timing(header: bytes) -> list[tuple[str, float]]:
    """Return stages and milliseconds of a Server-Timing header; entries without a valid duration are skipped."""
    stages = []
    for name, duration in STAGE.findall(header):
        try:
            stages.append((name.decode(), float(duration)))
        except ValueError:  # such as 1.2.3
            continue
    return stages
