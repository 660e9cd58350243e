"""benchmarks/serving.py: limits, the page, hostile bodies, the load generators and the peers."""

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.measuring.serving.hostile import MAX_BYTES, damaged
from benchmarks.measuring.serving.load import WRK, QuerySet, read_wrk, run_load, saturate
from benchmarks.measuring.serving.page import page
from benchmarks.measuring.serving.peers import peer, ready_command
from benchmarks.measuring.serving.record import Figure, Limit
from benchmarks.measuring.serving.survival import memory_growth, overload_limits
from benchmarks.measuring.serving.watch import Memory, Probe, back_to_normal
from benchmarks.serving import selected_figures
from loadtest.plan import Plan
from loadtest.report import summarize
from loadtest.run_stats import RunStats
from retrieval.errors import BadInput, DiptychError
from tests.support.service import Client

ANSWER = b'{"results": []}'
DEFAULTS = {"only": None, "markdown": None, "small": False, "minilm": None, "model": None, "environments": None}


def test_a_limit_is_a_maximum_or_a_minimum() -> None:
    """If it fails, the page calls a missed limit reached, or a reached limit missed."""
    assert Limit("ratio", 0.45, 0.45, at_least=True).met
    assert not Limit("ratio", 0.44, 0.45, at_least=True).met
    assert Limit("failed", 0, 0).met
    assert not Limit("failed", 1, 0).met
    assert not Limit("seconds until normal", math.inf, 2).met


def test_the_page_shows_a_missed_limit_with_absolute_rates(tmp_path: Path) -> None:
    """If it fails, a ratio has no absolute rates, a missed limit is not shown, or a saved figure cannot be read."""
    missed = Limit("throughput", 0.331, 0.45, at_least=True, detail="4,800/s against 14,500/s")
    figure = Figure(
        "Beside ready bytes", [missed, Limit("seconds", math.inf, 2)], ["A note."], (0.5, 2.25), 61, "run it"
    )
    figure.write(tmp_path / "1.json")
    assert Figure.read(tmp_path / "1.json") == figure
    lines = page({1: figure})
    assert "| 1 | throughput | 0.331 | ≥ 0.45 | **missed** |" in lines
    assert "| 1 | seconds | never | ≤ 2 | **missed** |" in lines
    assert "- **missed**: throughput 0.331 (≥ 0.45): 4,800/s against 14,500/s." in lines
    assert any("`run it`, 61 s." in line and "load average 0.5 before and 2.2 at the end" in line for line in lines)


def test_normal_again_needs_answers_in_a_row() -> None:
    """If it fails, one fast answer among slow and refused ones counts as recovery."""
    quick = [Probe(at, 0.005, 200) for at in (0.0, 10.0, 12.0, 12.1, 12.2)]
    others = [Probe(11.0, 3.0, 200), Probe(11.5, 0.001, 429), Probe(11.9, 0.2, 200)]
    seen = sorted([*quick, *others])
    assert back_to_normal(seen, 10.0, 0.01, in_a_row=3) == pytest.approx(2.005)
    assert back_to_normal(seen, 10.0, 0.01, in_a_row=4) is None
    assert back_to_normal(seen, 20.0, 0.01, in_a_row=1) is None


def test_memory_is_compared_without_moments_of_two_engines() -> None:
    """If it fails, a switch at the end of a soak looks like a leak, or hides one."""
    seen = [Memory(float(at), 100 + at, 1) for at in range(101)]
    switching = [one._replace(bytes=1000, engines=2) if 82 <= one.at < 90 else one for one in seen]
    assert memory_growth(switching) == (130, 194)
    with pytest.raises(DiptychError, match="always a switch"):
        memory_growth([one._replace(engines=2) for one in seen])


def test_overload_distinguishes_429_from_other_failures() -> None:
    """If it fails, a 500 under load counts as a refusal, or a slow refusal as a fast one."""
    stats = RunStats(100, 1)
    for status, seconds in [("200", 1.0), ("429", 0.005), ("429", 0.012), ("500", 0.001)]:
        stats.outcomes[status].record(seconds)
    report = summarize(
        Plan(rate=100, duration=1), stats, url="", queries=1, cpu=0, connections=1, waited=0, switches=None,
        interrupted=False,
    )  # fmt: skip
    admitted, refused, others, memory, back = overload_limits(report, 100, 112, None)
    assert admitted.value == pytest.approx(1000, rel=0.01)
    assert refused.value == pytest.approx(12, rel=0.01)
    assert others.value == 1
    assert (memory.met, back.met) == (False, False)


def test_damaged_bodies_are_distinct_bounded_and_reproducible() -> None:
    """If it fails, a body that broke the service cannot be sent again, or most bodies are valid."""
    good = [json.dumps({"queries": [text], "k": 10}).encode() for text in ("red shoes", "cart")]
    first, second = (list(itertools.islice(damaged(good, 7), 300)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 250
    assert sum(body in good for body in first) < 15
    assert max(map(len, first)) <= MAX_BYTES


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"only": [2]}, r"figure 2 needs --minilm, --model, --environments\."),
        ({"only": [1, 8]}, r"figure 8 needs --switching\."),
        ({"small": True, "markdown": Path("page.md")}, r"leave out --markdown\."),
        ({"markdown": Path("no/such/page.md")}, r"its folder does not exist"),
    ],
)
def test_missing_options_are_refused_at_once(options: dict[str, object], error: str) -> None:
    """If it fails, a missing option ends a run after an hour."""
    with pytest.raises(BadInput, match=error):
        selected_figures(argparse.Namespace(**{**DEFAULTS, "switching": None, **options}))


def test_figures_with_their_stores_are_selected_by_default() -> None:
    """If it fails, figure 4 is silently omitted, or the long soak runs by default."""
    assert selected_figures(argparse.Namespace(**{**DEFAULTS, "switching": Path("large")})) == [1, 3, 4, 5, 6, 7]


@contextmanager
def ready(folder: Path, *, by_hand: bool = True) -> Iterator[int]:
    """Run a route that returns ready bytes; yield its port."""
    (folder / "answer.json").write_bytes(ANSWER)
    with peer(ready_command(folder / "answer.json", by_hand=by_hand), folder / "log") as port:
        yield port


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_ready_route_checks_requests(tmp_path: Path, by_hand: bool) -> None:
    """If it fails, the peer is faster because it checks nothing."""
    json_type = {"Content_Type": "application/json"}
    with ready(tmp_path, by_hand=by_hand) as port:
        with Client(port) as client:
            reply = client.post("/predict", {"queries": ["red shoes"], "k": 10}, **json_type)
        assert (reply.status, reply.body) == (200, ANSWER)
        for bad in ({"queries": ["red shoes"], "k": 1000}, {"queries": [" "]}, {"query": "red shoes"}):
            with Client(port) as client:
                assert client.post("/predict", bad, **json_type).status == 422


@pytest.mark.skipif(WRK is None, reason="wrk is not installed")
def test_wrk_sends_the_queries(tmp_path: Path) -> None:
    """If it fails, saturation is measured with requests that the service refuses, or with none."""
    with ready(tmp_path) as port:
        accepted = saturate(port, QuerySet(["red shoes", 'a "quoted" cart'], tmp_path), 1, 2)
        refused = saturate(port, QuerySet([" "], tmp_path), 1, 2)
    assert accepted.failed == 0
    assert accepted.rate > 0
    assert refused.failed > 0
    assert refused.rate == 0


def test_wrk_without_an_answer_is_one_sentence() -> None:
    """If it fails, a service without answers causes a division by zero."""
    with pytest.raises(DiptychError, match="no answer at all"):
        read_wrk('\n{"answers": 0, "seconds": 1.0, "refused": 0, "broken": 3, "p50_ms": 0, "p99_ms": 0}\n')


def test_the_open_loop_sends_the_requested_rate(tmp_path: Path) -> None:
    """If it fails, the report of a run cannot be read, or the run has another rate or duration."""
    with ready(tmp_path) as port:
        report = run_load(port, QuerySet(["red shoes"], tmp_path), 50, 0.5)
    assert (report.sent, report.failed) == (25, 0)


def test_a_load_that_cannot_be_sent_is_one_sentence(tmp_path: Path) -> None:
    """If it fails, a port without a service ends in a traceback."""
    with pytest.raises(DiptychError, match=r"^the load generator could not measure: Nothing answers at "):
        run_load(1, QuerySet(["red shoes"], tmp_path), 50, 0.5)
