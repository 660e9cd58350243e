"""Parts of the load generator that need no service: arrival times, histogram, limits, validity, knee, page."""

import asyncio
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import arrival_times
from loadtest.client import TIMED_OUT, RequestOutcome
from loadtest.display.page import render
from loadtest.histogram import Histogram
from loadtest.plan import Plan, parse_duration, request_bodies
from loadtest.report import LatencySummary, Report, SwitchingReport, invalid_reasons, summarize
from loadtest.run_stats import RunStats, parse_server_timing
from loadtest.sweep import RATE_FACTOR, kept_up, knee, sweep
from loadtest.switching import Switch
from loadtest.target import Target
from retrieval.errors import BadInput


def histogram(*durations: float) -> Histogram:
    found = Histogram()
    for duration in durations:
        found.record(duration)
    return found


def report(
    rate: float, latency: float, *, answered: float = 1.0, kind: str = "200", late: float = 0.0, waited: int = 0
) -> Report:
    """A run of one second at `rate`, as the generator tallies it: a share `answered` is in time, the rest late."""
    plan = Plan(rate=rate, duration=1)
    stats = RunStats(rate, 1)
    for number, due in enumerate(arrival_times(rate, 1, "constant")):
        stats.add_sent(due, late)
        after = latency if number < answered * rate else latency + 2
        stats.add_outcome(
            RequestOutcome(kind, due, due + after, b"queue;dur=1.5, total;dur=4", b"one"), 0.0, switching=due < 0.5
        )
    stats.cut(1.0)
    return summarize(
        plan, stats, url="http://127.0.0.1:1", queries=3, cpu=0.1, connections=2, waited=waited, switches=None,
        interrupted=False,
    )  # fmt: skip


@given(st.lists(st.floats(1e-6, 5000), min_size=1, max_size=300))
def test_quantiles_are_right_to_three_digits(durations: list[float]) -> None:
    """A p99 would be wrong in the first three digits, or the maximum would not be the largest value."""
    found = histogram(*durations)
    ordered = sorted(durations)
    shares = (0.5, 0.9, 0.99, 0.999, 1.0)
    for share, quantile in zip(shares, found.quantiles(shares), strict=True):
        assert quantile == pytest.approx(ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1], rel=1e-3)
    assert found.max == ordered[-1]
    assert found.mean == pytest.approx(float(np.mean(durations)))


def test_an_empty_histogram_and_a_clock_that_went_back() -> None:
    """A run without an answer would end in a traceback instead of a report."""
    assert histogram().quantiles((0.5, 0.99)) == [0.0, 0.0]
    assert histogram(-0.5).quantiles((0.5,)) == [0.0]


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_a_schedule_is_in_order_and_has_its_rate(arrivals: str) -> None:
    """Requests would be offered at another rate than requested, or after the end."""
    due = list(arrival_times(500, 20, arrivals))  # type: ignore[arg-type]
    assert len(due) == 10_000
    assert due == sorted(due)
    assert due[0] >= 0
    assert due[-1] < 20
    gaps = np.diff(due)
    # the gaps of a Poisson process spread as widely as they are long; equal ones not at all
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1 if arrivals == "poisson" else 0, abs=0.05)


@pytest.mark.parametrize(
    ("header", "stages"),
    [
        (b"queue;dur=0.123, tokenize;dur=4.000", [("queue", 0.123), ("tokenize", 4.0)]),
        (b'cache;desc="hit", total ; dur=12', [("total", 12.0)]),
        (b"total;dur=1.2.3, queue;dur=5", [("queue", 5.0)]),
        (b"", []),
    ],
)
def test_server_timing_is_read(header: bytes, stages: list[tuple[str, float]]) -> None:
    """The split by stages would be missing or wrong, or a strange header would end the run."""
    assert parse_server_timing(header) == stages


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate": 0}, "--rate is 0; the minimum is 0.1."),
        ({"rate": 1e6}, "--rate is 1e+06; the maximum is 50,000."),
        ({"duration": 7200}, "--duration is 7200; the maximum is 3,600."),
        (
            {"rate": 5_000, "duration": 3600},
            "5000 requests per second for 3600 s are 18,000,000 requests; the limit is 10,000,000.",
        ),
        ({"k": 0}, "-k is 0; the minimum is 1."),
        ({"max_lag": 0}, "--max-lag is 0; it must be above 0."),
        ({"arrivals": "uniform"}, "--arrivals is 'uniform'; input should be 'poisson' or 'constant'."),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_in_one_sentence(given: dict[str, object], sentence: str) -> None:
    """A mistyped option would put a service under load for hours, or end in a traceback."""
    with pytest.raises(BadInput) as refused:
        Plan.from_options(**({"rate": 10, "duration": 1} | given))
    assert str(refused.value) == sentence


def test_durations_are_read() -> None:
    """30s would mean something else, or a misspelt unit would be read as seconds."""
    assert [parse_duration(one, "--duration") for one in ("500ms", "30s", "5m", "1h", "2", "1.5 s")] == [
        0.5, 30, 300, 3600, 2, 1.5,
    ]  # fmt: skip
    for wrong in ("30 days", "-1s", "", "s"):
        with pytest.raises(BadInput, match="give a duration such as 500ms, 30s or 5m"):
            parse_duration(wrong, "--duration")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://192.0.2.7:8000", "http://192.0.2.7:8000 is not on this machine. Confirm that you own it:"),
        ("ftp://127.0.0.1", "ftp://127.0.0.1 is not the URL of a service"),
        ("http://user:secret@127.0.0.1:8000", "is not the URL of a service"),
        ("http://127.0.0.1:99999", "Port out of range"),
    ],
)
def test_a_remote_target_must_be_confirmed(url: str, sentence: str) -> None:
    """A load test could be aimed at another owner's service by mistake."""
    with pytest.raises(BadInput) as refused:
        Target.resolve(url)
    assert sentence in str(refused.value)


def test_built_in_queries_differ_and_files_are_read(tmp_path: Path) -> None:
    """A response cache would improve the figures of a run without a file, or blank rows of a file would be refused."""
    plain = request_bodies(None, None, 5)
    assert len(set(plain)) == len(plain) > 4000
    assert plain[0].endswith(b'"k": 5}')
    (tmp_path / "q.csv").write_text("query\nred shoes\n \nlight rain\n")
    assert request_bodies(tmp_path / "q.csv", None, 1) == [
        b'{"queries": ["red shoes"], "k": 1}', b'{"queries": ["light rain"], "k": 1}',
    ]  # fmt: skip
    (tmp_path / "blank.csv").write_text("query\n \n")
    with pytest.raises(BadInput, match="contains no query"):
        request_bodies(tmp_path / "blank.csv", None, 1)


def test_a_generator_that_lags_is_called_invalid() -> None:
    """The generator's own slowness would be reported as the service's."""
    lagging = report(100, 0.020, late=0.006)
    assert lagging.late
    assert (
        "The generator was the bottleneck: 1 % of requests left at least 6 ms late (limit 5 ms)." in lagging.invalid[0]
    )
    assert report(100, 0.030, late=0.006).invalid == ()  # less than a quarter of the service's p99
    assert report(100, 0.0002, late=0.0009).invalid == ()  # what any machine costs


def test_waiting_for_connections_and_no_answer_are_called_invalid() -> None:
    """A rate that never reached the service would be reported as offered to it, or a dead service as measured."""
    (why,) = report(100, 0.02, waited=2).invalid
    assert "2 of 100 requests waited for a connection. Raise --connections" in why
    assert report(100, 0.02, waited=1).invalid == ()
    assert invalid_reasons(LatencySummary.from_histogram(histogram()), 1.0, 0, 10, 0) == [
        "No request was answered with 200."
    ]
    assert report(100, 0.02, kind="429").invalid == ("No request was answered with 200.",)


def test_requests_are_counted_by_outcome_window_stage_and_bundle() -> None:
    """Errors would be mixed into the latencies, or counted at the wrong time or not at all."""
    stats = RunStats(rate=1000, duration=1)
    for due, kind in ((0.1, "200"), (0.3, "429"), (0.6, TIMED_OUT), (0.9, "200")):
        stats.add_sent(due, 0.0)
        after = 0.1 if due < 0.5 else 0.2
        stats.add_outcome(RequestOutcome(kind, due, due + after, b"total;dur=100", b"one"), 0.0, switching=due > 0.5)
    assert {kind: found.count for kind, found in stats.outcomes.items()} == {"200": 2, "429": 1, TIMED_OUT: 1}
    assert [(one.sent, one.failed, one.latency.count) for one in stats.windows] == [
        (1, 0, 1), (1, 1, 0), (1, 1, 0), (1, 0, 1),
    ]  # fmt: skip
    assert (stats.sent, stats.failed, stats.in_time) == (4, 2, 1)  # the last answer came after the end
    assert (stats.steady.max, stats.switching.max) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (stats.stages["total"].count, stats.bundles["one"]) == (2, 2)


def test_a_service_that_falls_behind_has_not_kept_up() -> None:
    """A sweep would report a rate as sustainable whose answers come ever later, or are refusals."""
    assert kept_up(report(1000, 0.001))
    assert kept_up(report(20, 0.2))  # ten under way at the end are no sign of anything
    assert not kept_up(report(1000, 0.001, answered=0.9))
    assert not kept_up(report(1000, 0.001, kind="429"))
    assert not kept_up(report(1000, 0.001, waited=500))


def test_the_knee_has_the_most_throughput_for_its_latency() -> None:
    """An operator would run the service at a rate where latency already grows, or far below capacity."""
    curve = [report(rate, latency) for rate, latency in ((100, 0.004), (200, 0.005), (400, 0.006), (800, 0.020))]
    found = knee(curve)
    assert found is not None
    assert found.rate == 400
    assert knee([]) is None


def test_a_sweep_rises_until_the_service_falls_behind() -> None:
    """A sweep would end too early, or continue to load a service that is overloaded."""

    async def service(plan: Plan) -> Report:
        """Answers in 5 ms up to 500/s, and from there on only half in time."""
        return report(plan.rate, 0.005, answered=1 if plan.rate <= 500 else 0.5)

    found = asyncio.run(sweep(Plan(rate=100, duration=1), service))
    assert [step.rate for step in found.steps] == [100, 141.4, 200, 282.8, 400, 565.7]
    assert found.knee == 400
    assert found.ended == "the service did not keep up with 565.7 requests per second"
    assert (found.invalid, found.interrupted) == ((), False)


def test_a_sweep_ends_where_the_generator_does() -> None:
    """The generator's own limit would be reported as the service's knee."""

    async def service(plan: Plan) -> Report:
        return report(plan.rate, 0.005, late=0.0 if plan.rate < 200 else 0.004)

    found = asyncio.run(sweep(Plan(rate=100, duration=1), service))
    assert found.ended == "the generator could not measure 200 requests per second"
    assert "The generator was the bottleneck" in found.invalid[0]
    assert found.knee == round(100 * RATE_FACTOR)


class Page(HTMLParser):
    """The tags of a page, and every address it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_pages_are_self_contained_and_escaped() -> None:
    """A report would load something from the network, or run a script that a service put in a header."""
    strange = '<script>alert("x")</script>'
    run = report(100, 0.02).model_copy(
        update={
            "bundles": {strange: 3},
            "outcomes": {strange: LatencySummary.from_histogram(histogram(0.1))},
            "invalid": (strange,),
            "switching": SwitchingReport(
                switches=(Switch(bundle="b", started_seconds=0.2, failure=strange),),
                during=LatencySummary.from_histogram(histogram(0.1)),
                steady=LatencySummary.from_histogram(histogram(0.2)),
            ),
        }
    )

    async def service(plan: Plan) -> Report:
        return report(plan.rate, 0.005, answered=1 if plan.rate <= 200 else 0.5)

    rising = asyncio.run(sweep(Plan(rate=100, duration=1), service))
    run_page = render(run)
    assert "&lt;script&gt;alert" in run_page
    for text, charts in ((run_page, 2), (render(rising), 1)):
        page = Page(text)
        assert page.tags.count("svg") == charts
        assert page.addresses == []
        assert not re.search(r"url\((?!#)|@import|xlink:href=\"(?!#)", text)
        assert len(set(page.ids)) == len(page.ids)
        assert "script" not in page.tags
        assert "http-equiv" in text
        assert "nan" not in text


def test_charts_are_reproducible() -> None:
    """If this failed, the page of the same report would differ from one day or process to the next."""
    run = report(100, 0.02)
    assert render(run) == render(run)
