"""What a run found, as it is printed, drawn and written as JSON. Times are milliseconds where a name says so."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from loadtest.histogram import Histogram
from loadtest.plan import Plan
from loadtest.tally import OK, Tally, Window

SHARES = (0.5, 0.9, 0.99, 0.999)
ENOUGH_WAITED = 0.01  # of the requests that had to wait for a connection: more, and the offered rate did not arrive


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latencies(Model):
    """A histogram in its usual figures."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, found: Histogram) -> Self:
        p50, p90, p99, p999 = (round(value * 1e3, 4) for value in found.quantiles(SHARES))
        mean, most = round(found.mean * 1e3, 4), round(found.most * 1e3, 4)
        return cls(count=found.count, mean_ms=mean, p50_ms=p50, p90_ms=p90, p99_ms=p99, p999_ms=p999, max_ms=most)


class Moment(Model):
    """A stretch of the run: requests due in it a second, those answered with 200, and how quickly."""

    at_seconds: float
    sent_per_second: float
    answered_per_second: float
    failed: int
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, window: Window, at: float, width: float) -> Self:
        p50, p99 = (round(value * 1e3, 4) for value in window.answered.quantiles((0.5, 0.99)))
        answered = window.answered.count
        return cls(
            at_seconds=round(at, 3), sent_per_second=round(window.sent / width, 2),
            answered_per_second=round(answered / width, 2), failed=window.failed,
            p50_ms=p50 if answered else None, p99_ms=p99 if answered else None,
        )  # fmt: skip


class SwitchMade(Model):
    """One change of bundle; `ended_seconds` is None when the run ended first, `failure` None when it went well."""

    bundle: str
    began_seconds: float
    ended_seconds: float | None
    failure: str | None


class Switching(Model):
    """The changes of bundle, and the latencies of requests that one of them touched beside those of the others."""

    switches: tuple[SwitchMade, ...]
    during: Latencies
    steady: Latencies


class Report(Model):
    """One run at one rate. Latencies are counted from when requests were due; `latency` is that of the 200s.

    `rate` was asked for, `offered` was sent, `achieved` are the 200s that came while requests were sent, all a second;
    the number of these 200s is `in_time`. `busy` is the generator's share of a core. `invalid` says why the figures are
    the generator's and not the service's; it is empty when they are valid.
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
    latency: Latencies
    outcomes: dict[str, Latencies]
    stages: dict[str, Latencies]
    bundles: dict[str, int]
    lag: Latencies
    lag_limit_ms: float
    busy: float
    connections: int
    waited: int
    moments: tuple[Moment, ...]
    switching: Switching | None
    interrupted: bool
    invalid: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Requests that ended otherwise than with a 200."""
        return sum(found.count for kind, found in self.outcomes.items() if kind != OK)

    @property
    def late(self) -> bool:
        """Whether the generator could not keep to its schedule."""
        return self.lag.p99_ms > self.lag_limit_ms


class SweepReport(Model):
    """Runs at rising rates. `knee` is the offered rate with the most throughput for its latency, `saturation` the
    highest rate of 200s that was reached, None for neither; `ended` says why the rates rose no further."""

    steps: tuple[Report, ...]
    knee: float | None
    saturation: float | None
    ended: str
    interrupted: bool
    invalid: tuple[str, ...]


def summarize(
    plan: Plan, tally: Tally, *, url: str, queries: int, busy: float, connections: int, waited: int,
    switching: Switching | None, interrupted: bool,
) -> Report:  # fmt: skip
    """The figures of a finished run."""
    span = max(tally.duration, 1e-9)
    latency = Latencies.of(tally.outcomes[OK] if OK in tally.outcomes else Histogram())
    lag, limit = Latencies.of(tally.lag), plan.lag_limit(latency.p99_ms / 1e3) * 1e3
    moments = [
        Moment.of(window, number * tally.width, tally.span(number)) for number, window in enumerate(tally.windows)
    ]
    return Report(
        url=url, arrivals=plan.arrivals, k=plan.k, queries=queries, seconds=round(span, 3), rate=plan.rate,
        offered=round(tally.sent / span, 2), achieved=round(tally.in_time / span, 2),
        sent=tally.sent, in_time=tally.in_time, latency=latency, outcomes=_latencies(tally.outcomes),
        stages=_latencies(tally.stages),
        bundles=dict(tally.bundles), lag=lag, lag_limit_ms=round(limit, 4), busy=round(busy, 4),
        connections=connections, waited=waited, moments=tuple(moments), switching=switching, interrupted=interrupted,
        invalid=tuple(verdict(lag, limit, latency.count, tally.sent, waited)),
    )  # fmt: skip


def verdict(lag: Latencies, limit_ms: float, answered: int, sent: int, waited: int) -> Sequence[str]:
    """Why a run's figures say nothing of the service; nothing when they do."""
    reasons = []
    if not answered:
        reasons.append("No request was answered with 200.")
    if lag.p99_ms > limit_ms:
        reasons.append(
            f"The generator was the bottleneck: a hundredth of the requests went out {lag.p99_ms:.3g} ms late or "
            f"later, where {limit_ms:.3g} ms is the most. Give it a core of its own, or ask for a lower rate."
        )
    if waited > ENOUGH_WAITED * sent:
        reasons.append(
            f"The generator was the bottleneck: {waited:,} of {sent:,} requests had to wait for a connection. "
            "Allow more with --connections, or ask for a lower rate."
        )
    return reasons


def _latencies(found: Mapping[str, Histogram]) -> dict[str, Latencies]:
    return {name: Latencies.of(one) for name, one in found.items()}
