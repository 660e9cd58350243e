"""The load generator's parts that need no service: schedule, histogram, limits, verdicts, knee, curves."""

import asyncio
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import schedule
from loadtest.chart import decades, steps
from loadtest.client import TIMED_OUT, Ended
from loadtest.histogram import Histogram
from loadtest.page import run_page, sweep_page
from loadtest.plan import Plan, bodies, seconds
from loadtest.report import Latencies, Report, Switching, SwitchMade, summarize, verdict
from loadtest.sweep import STEP, held, knee, sweep
from loadtest.tally import Tally, parse_timing
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
    tally = Tally(rate, 1)
    for number, due in enumerate(schedule(rate, 1, "constant")):
        tally.send(due, late)
        after = latency if number < answered * rate else latency + 2
        tally.end(Ended(kind, due, due + after, b"queue;dur=1.5, total;dur=4", b"one"), 0.0, switching=due < 0.5)
    tally.stop(1.0)
    return summarize(
        plan, tally, url="http://127.0.0.1:1", queries=3, busy=0.1, connections=2, waited=waited, switching=None,
        interrupted=False,
    )  # fmt: skip


@given(st.lists(st.floats(1e-6, 5000), min_size=1, max_size=300))
def test_quantiles_are_right_to_three_digits(durations: list[float]) -> None:
    """A p99 would be off by more than a reader of three digits sees, or the maximum would not be the largest."""
    found = histogram(*durations)
    ordered = sorted(durations)
    shares = (0.5, 0.9, 0.99, 0.999, 1.0)
    for share, quantile in zip(shares, found.quantiles(shares), strict=True):
        assert quantile == pytest.approx(ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1], rel=1e-3)
    assert found.most == ordered[-1]
    assert found.mean == pytest.approx(float(np.mean(durations)))


def test_an_empty_histogram_and_a_clock_that_went_back() -> None:
    """A run without an answer would end in a traceback instead of a report."""
    assert histogram().quantiles((0.5, 0.99)) == [0.0, 0.0]
    assert histogram(-0.5).quantiles((0.5,)) == [0.0]


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_a_schedule_is_in_order_and_has_its_rate(arrivals: str) -> None:
    """Requests would be offered at another rate than was asked for, or after the end."""
    due = list(schedule(500, 20, arrivals))  # type: ignore[arg-type]
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
    assert parse_timing(header) == stages


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate": 0}, "--rate is 0; the least is 0.1."),
        ({"rate": 1e6}, "--rate is 1e+06; the most is 50,000."),
        ({"duration": 7200}, "--duration is 7200; the most is 3,600."),
        (
            {"rate": 5_000, "duration": 3600},
            "5000 requests a second for 3600 s are 18,000,000; the most is 10,000,000.",
        ),
        ({"k": 0}, "-k is 0; the least is 1."),
        ({"max_lag": 0}, "--max-lag is 0; it must be above 0."),
        ({"arrivals": "uniform"}, "--arrivals is 'uniform'; input should be 'poisson' or 'constant'."),
    ],
)  # fmt: skip
def test_silly_values_are_refused_in_a_sentence(given: dict[str, object], sentence: str) -> None:
    """A slip of the finger would load a service for hours, or be answered with a traceback."""
    with pytest.raises(BadInput) as refused:
        Plan.of(**({"rate": 10, "duration": 1} | given))
    assert str(refused.value) == sentence


def test_durations_are_read() -> None:
    """30s would mean something else, or a misspelt unit would be taken for seconds."""
    assert [seconds(one, "--duration") for one in ("500ms", "30s", "5m", "1h", "2", "1.5 s")] == [
        0.5, 30, 300, 3600, 2, 1.5,
    ]  # fmt: skip
    for wrong in ("30 days", "-1s", "", "s"):
        with pytest.raises(BadInput, match="give a duration such as 500ms, 30s or 5m"):
            seconds(wrong, "--duration")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://192.0.2.7:8000", "http://192.0.2.7:8000 is not on this machine. If it is your own, say so with"),
        ("ftp://127.0.0.1", "ftp://127.0.0.1 is not the URL of a service"),
        ("http://user:secret@127.0.0.1:8000", "is not the URL of a service"),
        ("http://127.0.0.1:99999", "Port out of range"),
    ],
)
def test_a_target_that_may_be_somebody_elses_is_refused(url: str, sentence: str) -> None:
    """A load test could be aimed at another's service by mistake."""
    with pytest.raises(BadInput) as refused:
        Target.find(url)
    assert sentence in str(refused.value)


def test_built_in_queries_differ_and_files_are_read(tmp_path: Path) -> None:
    """An answer cache would flatter a run without a file, or blank rows of a file would be sent and refused."""
    plain = bodies(None, None, 5)
    assert len(set(plain)) == len(plain) > 4000
    assert plain[0].endswith(b'"k": 5}')
    (tmp_path / "q.csv").write_text("query\nred shoes\n \nlight rain\n")
    assert bodies(tmp_path / "q.csv", None, 1) == [
        b'{"queries": ["red shoes"], "k": 1}', b'{"queries": ["light rain"], "k": 1}',
    ]  # fmt: skip
    (tmp_path / "blank.csv").write_text("query\n \n")
    with pytest.raises(BadInput, match="contains no query"):
        bodies(tmp_path / "blank.csv", None, 1)


def test_a_generator_that_lags_is_called_invalid() -> None:
    """The generator's own slowness would be reported as the service's."""
    lagging = report(100, 0.020, late=0.006)
    assert lagging.late
    assert "The generator was the bottleneck: a hundredth of the requests went out 6 ms late" in lagging.invalid[0]
    assert report(100, 0.030, late=0.006).invalid == ()  # less than a quarter of the service's p99
    assert report(100, 0.0002, late=0.0009).invalid == ()  # what any machine costs


def test_waiting_for_connections_and_no_answer_are_called_invalid() -> None:
    """A rate that never reached the service would be reported as offered to it, or a dead service as measured."""
    (why,) = report(100, 0.02, waited=2).invalid
    assert "2 of 100 requests had to wait for a connection. Allow more with --connections" in why
    assert report(100, 0.02, waited=1).invalid == ()
    assert verdict(Latencies.of(histogram()), 1.0, 0, 10, 0) == ["No request was answered with 200."]
    assert report(100, 0.02, kind="429").invalid == ("No request was answered with 200.",)


def test_a_tally_counts_by_outcome_window_stage_and_bundle() -> None:
    """Errors would be mixed into the latencies, or counted at the wrong time or not at all."""
    tally = Tally(rate=1000, duration=1)
    for due, kind in ((0.1, "200"), (0.3, "429"), (0.6, TIMED_OUT), (0.9, "200")):
        tally.send(due, 0.0)
        after = 0.1 if due < 0.5 else 0.2
        tally.end(Ended(kind, due, due + after, b"total;dur=100", b"one"), 0.0, switching=due > 0.5)
    assert {kind: found.count for kind, found in tally.outcomes.items()} == {"200": 2, "429": 1, TIMED_OUT: 1}
    assert [(one.sent, one.failed, one.answered.count) for one in tally.windows] == [
        (1, 0, 1), (1, 1, 0), (1, 1, 0), (1, 0, 1),
    ]  # fmt: skip
    assert (tally.sent, tally.failed, tally.in_time) == (4, 2, 1)  # the last answer came after the end
    assert (tally.steady.most, tally.switching.most) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (tally.stages["total"].count, tally.bundles["one"]) == (2, 2)


def test_a_service_that_falls_behind_has_not_held() -> None:
    """A sweep would take a rate for sustainable whose answers come ever later, or are refusals."""
    assert held(report(1000, 0.001))
    assert held(report(20, 0.2))  # ten under way at the end are no sign of anything
    assert not held(report(1000, 0.001, answered=0.9))
    assert not held(report(1000, 0.001, kind="429"))
    assert not held(report(1000, 0.001, waited=500))


def test_the_knee_has_the_most_throughput_for_its_latency() -> None:
    """An operator would be told to run the service where latency has already begun to grow, or far below."""
    curve = [report(rate, latency) for rate, latency in ((100, 0.004), (200, 0.005), (400, 0.006), (800, 0.020))]
    found = knee(curve)
    assert found is not None
    assert found.rate == 400
    assert knee([]) is None


def test_a_sweep_rises_until_the_service_falls_behind() -> None:
    """A sweep would end too early, or go on loading a service that is long overloaded."""

    async def service(plan: Plan) -> Report:
        """Answers in 5 ms up to 500/s, and from there on only half in time."""
        return report(plan.rate, 0.005, answered=1 if plan.rate <= 500 else 0.5)

    found = asyncio.run(sweep(Plan(rate=100, duration=1), service))
    assert [step.rate for step in found.steps] == [100, 141.4, 200, 282.8, 400, 565.7]
    assert found.knee == 400
    assert found.ended == "the service did not keep up with 565.7 requests a second"
    assert (found.invalid, found.interrupted) == ((), False)


def test_a_sweep_ends_where_the_generator_does() -> None:
    """The generator's own limit would be reported as the service's knee."""

    async def service(plan: Plan) -> Report:
        return report(plan.rate, 0.005, late=0.0 if plan.rate < 200 else 0.004)

    found = asyncio.run(sweep(Plan(rate=100, duration=1), service))
    assert found.ended == "the generator could not measure 200 requests a second"
    assert "The generator was the bottleneck" in found.invalid[0]
    assert found.knee == round(100 * STEP)


@given(st.floats(1e-4, 1e6))
def test_axes_reach_around_what_they_show(most: float) -> None:
    """A curve would leave its drawing, or a chart would have no numbers beside it."""
    assert steps(most)[0] == 0
    assert steps(most)[-1] >= most * (1 - 1e-6)
    assert 3 <= len(steps(most)) <= 8
    for least in (most / 1000, most / 2, most):
        shown = decades(least, most)
        assert shown[0] <= least * (1 + 1e-6)
        assert shown[-1] >= most * (1 - 1e-6)
        assert len(shown) >= 2


class Page(HTMLParser):
    """The tags of a page, and every address it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "style")]


def test_pages_ask_nobody_for_anything_and_escape_what_they_show() -> None:
    """A report could not be read offline, would tell others that it is read, or run what a service put in a header."""
    strange = '<script>alert("x")</script>'
    run = report(100, 0.02).model_copy(
        update={
            "bundles": {strange: 3},
            "outcomes": {strange: Latencies.of(histogram(0.1))},
            "invalid": (strange,),
            "switching": Switching(
                switches=(SwitchMade(bundle="b", began_seconds=0.2, ended_seconds=None, failure=strange),),
                during=Latencies.of(histogram(0.1)),
                steady=Latencies.of(histogram(0.2)),
            ),
        }
    )

    async def service(plan: Plan) -> Report:
        return report(plan.rate, 0.005, answered=1 if plan.rate <= 200 else 0.5)

    rising = asyncio.run(sweep(Plan(rate=100, duration=1), service))
    for text, charts in ((run_page(run), 2), (sweep_page(rising), 1)):
        page = Page(text)
        assert page.tags.count("svg") == charts
        assert page.addresses == []
        assert "script" not in page.tags
        assert "http-equiv" in text
        assert "nan" not in text
