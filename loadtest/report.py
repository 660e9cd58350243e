"""The results of a run or a sweep: printed, drawn and written as JSON. Times ending in `_ms` are milliseconds."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from loadtest.histogram import Histogram
from loadtest.plan import Plan
from loadtest.run_stats import OK, RunStats, TimeWindow
from loadtest.switching import Switch

QUANTILES = (0.5, 0.9, 0.99, 0.999)
MAX_WAITED = 0.01  # fraction of requests that may wait for a connection; above it, the rate was not offered


class ReportModel(BaseModel):
    """Base of all parts of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LatencySummary(ReportModel):
    """Mean, quantiles and maximum of a histogram."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def from_histogram(cls, histogram: Histogram) -> Self:
        """Summarize in milliseconds."""
        p50, p90, p99, p999 = (_milliseconds(value) for value in histogram.quantiles(QUANTILES))
        return cls(
            count=histogram.count, mean_ms=_milliseconds(histogram.mean), p50_ms=p50, p90_ms=p90, p99_ms=p99,
            p999_ms=p999, max_ms=_milliseconds(histogram.max),
        )  # fmt: skip


class TimelinePoint(ReportModel):
    """One time window: requests due in it per second, those answered with 200, and their latency."""

    at_seconds: float
    sent_per_second: float
    answered_per_second: float
    failed: int
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def from_window(cls, window: TimeWindow, at: float, seconds: float) -> Self:
        """Summarize a window of this length that begins at `at`."""
        p50, p99 = (_milliseconds(value) for value in window.latency.quantiles((0.5, 0.99)))
        answered = window.latency.count
        return cls(
            at_seconds=round(at, 3), sent_per_second=round(window.sent / seconds, 2),
            answered_per_second=round(answered / seconds, 2), failed=window.failed,
            p50_ms=p50 if answered else None, p99_ms=p99 if answered else None,
        )  # fmt: skip


class SwitchingReport(ReportModel):
    """The switches, and the latencies of requests that overlapped one and of those that did not."""

    switches: tuple[Switch, ...]
    during: LatencySummary
    steady: LatencySummary


class Report(ReportModel):
    """One run at one rate. Latencies count from when requests were due; `latency` is that of the 200s.

    Per second: `rate` is the requested rate, `offered` was sent, `achieved` counts the 200s that came before the
    sending ended (`in_time`). `cpu` is the generator's share of a core. `invalid` lists the reasons why the figures
    measure the generator instead of the service; it is empty for a valid run.
    """

    url: str
    arrivals: str
    k: int
    queries: int
    seconds: float
    rate: float
    offered: float
    achieved: float
    sent: int
    in_time: int
    latency: LatencySummary
    outcomes: dict[str, LatencySummary]
    stages: dict[str, LatencySummary]
    bundles: dict[str, int]
    lag: LatencySummary
    lag_limit_ms: float
    cpu: float
    connections: int
    waited: int
    timeline: tuple[TimelinePoint, ...]
    switching: SwitchingReport | None
    interrupted: bool
    invalid: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Number of requests that ended without a 200."""
        return sum(latency.count for kind, latency in self.outcomes.items() if kind != OK)

    @property
    def late(self) -> bool:
        """True if the generator could not keep its schedule."""
        return self.lag.p99_ms > self.lag_limit_ms


class SweepReport(ReportModel):
    """Runs at increasing rates.

    `knee` is the offered rate with the most throughput per latency, `saturation` the highest rate of 200s; each is
    None if no step qualifies. `ended` says why the sweep stopped.
    """

    steps: tuple[Report, ...]
    knee: float | None
    saturation: float | None
    ended: str
    interrupted: bool
    invalid: tuple[str, ...]


def summarize(
    plan: Plan, stats: RunStats, *, url: str, queries: int, cpu: float, connections: int, waited: int,
    switches: Sequence[Switch] | None, interrupted: bool,
) -> Report:  # fmt: skip
    """Summarize a finished run; `switches` is None if it did not switch bundles."""
    seconds = max(stats.duration, 1e-9)
    latency = LatencySummary.from_histogram(stats.outcomes[OK] if OK in stats.outcomes else Histogram())
    lag, limit = LatencySummary.from_histogram(stats.lag), plan.lag_limit(latency.p99_ms / 1e3) * 1e3
    timeline = (
        TimelinePoint.from_window(window, number * stats.width, stats.window_seconds(number))
        for number, window in enumerate(stats.windows)
    )
    switching = None
    if switches is not None:
        switching = SwitchingReport(
            switches=tuple(switches),
            during=LatencySummary.from_histogram(stats.switching),
            steady=LatencySummary.from_histogram(stats.steady),
        )
    return Report(
        url=url, arrivals=plan.arrivals, k=plan.k, queries=queries, seconds=round(seconds, 3), rate=plan.rate,
        offered=round(stats.sent / seconds, 2), achieved=round(stats.in_time / seconds, 2), sent=stats.sent,
        in_time=stats.in_time, latency=latency, outcomes=_summaries(stats.outcomes), stages=_summaries(stats.stages),
        bundles=dict(stats.bundles), lag=lag, lag_limit_ms=round(limit, 4), cpu=round(cpu, 4),
        connections=connections, waited=waited, timeline=tuple(timeline), switching=switching, interrupted=interrupted,
        invalid=tuple(invalid_reasons(lag, limit, latency.count, stats.sent, waited)),
    )  # fmt: skip


def invalid_reasons(lag: LatencySummary, limit_ms: float, answered: int, sent: int, waited: int) -> list[str]:
    """Return the reasons why a run does not measure the service; empty for a valid run."""
    reasons = []
    if not answered:
        reasons.append("No request was answered with 200.")
    if lag.p99_ms > limit_ms:
        reasons.append(
            f"The generator was the bottleneck: 1 % of requests left at least {lag.p99_ms:.3g} ms late "
            f"(limit {limit_ms:.3g} ms). Give it its own core, or lower the rate."
        )
    if waited > MAX_WAITED * sent:
        reasons.append(
            f"The generator was the bottleneck: {waited:,} of {sent:,} requests waited for a connection. "
            "Raise --connections, or lower the rate."
        )
    return reasons


def _summaries(histograms: Mapping[str, Histogram]) -> dict[str, LatencySummary]:
    return {name: LatencySummary.from_histogram(histogram) for name, histogram in histograms.items()}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 4)
