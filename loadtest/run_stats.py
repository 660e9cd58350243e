"""What a run has seen so far: counts and histograms of bounded size, however long it goes on."""

import math
import re
from collections import Counter, defaultdict

from loadtest.client import Ended
from loadtest.histogram import Histogram

OK = "200"
WINDOWS, SHORTEST, FEWEST = 60, 0.25, 50  # of the curve over time: how many at most; seconds and requests of one
STAGE = re.compile(rb"([\w-]+)\s*;\s*dur=([0-9.]+)")


class Window:
    """A stretch of the run, by when requests were due."""

    def __init__(self) -> None:
        self.sent = 0
        self.failed = 0
        self.answered = Histogram()


class Tally:
    """Every request of a run, by how it ended, by when it was due and by what the service did meanwhile.

    Times are seconds from the start of the run; latencies are counted from when a request was due.
    """

    def __init__(self, rate: float, duration: float) -> None:
        self.duration = duration
        self.width = max(SHORTEST, FEWEST / rate, duration / WINDOWS)
        self.windows = [Window() for _ in range(math.ceil(duration / self.width))]
        self.lag = Histogram()
        self.outcomes: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.stages: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.bundles: Counter[str] = Counter()
        self.steady, self.switching = Histogram(), Histogram()
        self.in_time = 0  # answered before the last request was due

    @property
    def sent(self) -> int:
        """Requests that went out."""
        return self.lag.count

    @property
    def failed(self) -> int:
        """Requests that ended otherwise than with a 200."""
        return sum(found.count for kind, found in self.outcomes.items() if kind != OK)

    def send(self, due: float, late: float) -> None:
        """A request that was due went out, so many seconds late."""
        self.lag.record(late)
        self._window(due).sent += 1

    def end(self, ended: Ended, start: float, *, switching: bool) -> None:
        """A request of the run that began at `start` has ended; `switching` when a change of bundle touched it."""
        latency, due = ended.done - ended.due, ended.due - start
        self.outcomes[ended.kind].record(latency)
        if ended.kind != OK:
            self._window(due).failed += 1
            return
        self._window(due).answered.record(latency)
        (self.switching if switching else self.steady).record(latency)
        self.in_time += ended.done - start <= self.duration
        if ended.bundle:
            self.bundles[ended.bundle.decode("latin-1")] += 1
        for stage, milliseconds in parse_timing(ended.timing):
            self.stages[stage].record(milliseconds / 1e3)

    def stop(self, at: float) -> None:
        """The run was ended early."""
        self.duration = min(self.duration, at)
        del self.windows[math.ceil(self.duration / self.width) :]

    def span(self, number: int) -> float:
        """Seconds of a window; the last one may be cut short."""
        return max(1e-9, min(self.width, self.duration - number * self.width))

    def _window(self, due: float) -> Window:
        return self.windows[min(int(due / self.width), len(self.windows) - 1)]


def parse_timing(header: bytes) -> list[tuple[str, float]]:
    """Stages and milliseconds of a Server-Timing header; entries without a duration are left out."""
    found = []
    for name, written in STAGE.findall(header):
        try:
            found.append((name.decode(), float(written)))
        except ValueError:  # 1.2.3
            continue
    return found
