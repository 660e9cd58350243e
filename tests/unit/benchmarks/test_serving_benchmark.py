"""benchmarks/serving.py: what counts as reached, what is sent, and that the peers do what they are said to do."""

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.measuring.serving_hostile import MOST_BYTES, damaged
from benchmarks.measuring.serving_load import WRK, QuerySet, loaded, read_wrk, saturate
from benchmarks.measuring.serving_page import page
from benchmarks.measuring.serving_peers import peer, ready_command
from benchmarks.measuring.serving_record import Figure, Limit
from benchmarks.measuring.serving_survival import grown, overload_bars
from benchmarks.measuring.serving_watch import Memory, Probe, back_to_normal
from benchmarks.serving import chosen
from loadtest.plan import Plan
from loadtest.report import summarize
from loadtest.run_stats import RunStats
from retrieval.errors import BadInput, DiptychError
from tests.support.service import Client

ANSWER = b'{"results": []}'
GIVEN = {"only": None, "markdown": None, "small": False, "minilm": None, "model": None, "environments": None}


def test_a_bar_is_reached_on_its_own_side() -> None:
    """If this failed, the page would call a missed bar reached, or the other way round."""
    assert Limit("ratio", 0.45, 0.45, least=True).met
    assert not Limit("ratio", 0.44, 0.45, least=True).met
    assert Limit("failed", 0, 0).met
    assert not Limit("failed", 1, 0).met
    assert not Limit("seconds until normal", math.inf, 2).met


def test_the_page_shows_a_missed_bar_with_its_absolute_figures(tmp_path: Path) -> None:
    """If this failed, a ratio would stand alone, a miss would not show, or a kept figure could not be read again."""
    missed = Limit("throughput", 0.331, 0.45, least=True, beside="4,800/s against 14,500/s")
    figure = Figure(
        "Beside ready bytes", [missed, Limit("seconds", math.inf, 2)], ["A note."], (0.5, 2.25), 61, "run it"
    )
    figure.write(tmp_path / "1.json")
    assert Figure.read(tmp_path / "1.json") == figure
    lines = page({1: figure})
    assert "| 1 | throughput | 0.331 | ≥ 0.45 | **missed** |" in lines
    assert "| 1 | seconds | never | ≤ 2 | **missed** |" in lines
    assert "- **missed**: throughput 0.331 (≥ 0.45): 4,800/s against 14,500/s." in lines
    assert any("`run it`, 61 s." in line and "0.5 processes" in line and "2.2 in the last" in line for line in lines)


def test_normal_again_needs_answers_in_a_row() -> None:
    """If this failed, one lucky answer among slow and refused ones would count as a service that is back."""
    quick = [Probe(at, 0.005, 200) for at in (0.0, 10.0, 12.0, 12.1, 12.2)]
    others = [Probe(11.0, 3.0, 200), Probe(11.5, 0.001, 429), Probe(11.9, 0.2, 200)]
    seen = sorted([*quick, *others])
    assert back_to_normal(seen, 10.0, 0.01, in_a_row=3) == pytest.approx(2.005)
    assert back_to_normal(seen, 10.0, 0.01, in_a_row=4) is None
    assert back_to_normal(seen, 20.0, 0.01, in_a_row=1) is None


def test_memory_is_compared_without_moments_of_two_engines() -> None:
    """If this failed, a switch in the last minutes of a soak would look like a leak, or would hide one."""
    seen = [Memory(float(at), 100 + at, 1) for at in range(101)]
    switching = [one._replace(bytes=1000, engines=2) if 82 <= one.at < 90 else one for one in seen]
    assert grown(switching) == (130, 194)
    with pytest.raises(DiptychError, match="always a switch"):
        grown([one._replace(engines=2) for one in seen])


def test_too_much_load_tells_429_from_other_failures() -> None:
    """If this failed, a 500 under load would pass as a refusal, or a slow refusal as a quick one."""
    stats = RunStats(100, 1)
    for status, seconds in [("200", 1.0), ("429", 0.005), ("429", 0.012), ("500", 0.001)]:
        stats.outcomes[status].record(seconds)
    report = summarize(
        Plan(rate=100, duration=1), stats, url="", queries=1, cpu=0, connections=1, waited=0, switches=None,
        interrupted=False,
    )  # fmt: skip
    admitted, refused, others, memory, back = overload_bars(report, 100, 112, None)
    assert admitted.value == pytest.approx(1000, rel=0.01)
    assert refused.value == pytest.approx(12, rel=0.01)
    assert others.value == 1
    assert (memory.met, back.met) == (False, False)


def test_damaged_bodies_are_many_bounded_and_the_same_again() -> None:
    """If this failed, a body that broke the service could not be sent again, or most would be good ones."""
    good = [json.dumps({"queries": [text], "k": 10}).encode() for text in ("red shoes", "cart")]
    first, second = (list(itertools.islice(damaged(good, 7), 300)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 250
    assert sum(body in good for body in first) < 15
    assert max(map(len, first)) <= MOST_BYTES


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"only": [2]}, r"figure 2 needs --minilm, --model, --environments\."),
        ({"only": [1, 8]}, r"figure 8 needs --switching\."),
        ({"small": True, "markdown": Path("page.md")}, r"leave out --markdown\."),
        ({"markdown": Path("no/such/page.md")}, r"no such folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(given: dict[str, object], wrong: str) -> None:
    """If this failed, a run of an hour would end with an option that was missing from its start."""
    with pytest.raises(BadInput, match=wrong):
        chosen(argparse.Namespace(**{**GIVEN, "switching": None, **given}))


def test_stores_that_are_given_are_measured_without_asking() -> None:
    """If this failed, figure 4 would be left out silently, or the long soak would run unasked."""
    assert chosen(argparse.Namespace(**{**GIVEN, "switching": Path("large")})) == [1, 3, 4, 5, 6, 7]


@contextmanager
def ready(folder: Path, *, by_hand: bool = True) -> Iterator[int]:
    """The port of a route that returns ready bytes."""
    (folder / "answer.json").write_bytes(ANSWER)
    with peer(ready_command(folder / "answer.json", by_hand=by_hand), folder / "log") as port:
        yield port


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_ready_route_checks_requests(tmp_path: Path, by_hand: bool) -> None:
    """If this failed, the peer would be faster for not checking anything."""
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
    """If this failed, saturation would be that of requests which the service refuses, or of none."""
    with ready(tmp_path) as port:
        found = saturate(port, QuerySet(["red shoes", 'a "quoted" cart'], tmp_path), 1, 2)
        refused = saturate(port, QuerySet([" "], tmp_path), 1, 2)
    assert found.failed == 0
    assert found.rate > 0
    assert refused.failed > 0
    assert refused.rate == 0


def test_wrk_without_an_answer_is_one_sentence() -> None:
    """If this failed, a service that answers nothing would be a division by zero."""
    with pytest.raises(DiptychError, match="no answer at all"):
        read_wrk('\n{"answers": 0, "seconds": 1.0, "refused": 0, "broken": 3, "p50_ms": 0, "p99_ms": 0}\n')


def test_the_open_loop_sends_what_it_is_told(tmp_path: Path) -> None:
    """If this failed, a run at a rate could not be read, or would end otherwise than it was asked to."""
    with ready(tmp_path) as port:
        report = loaded(port, QuerySet(["red shoes"], tmp_path), 50, 0.5)
    assert (report.sent, report.failed) == (25, 0)


def test_a_load_that_cannot_be_sent_is_one_sentence(tmp_path: Path) -> None:
    """If this failed, a port without a service would end in a traceback."""
    with pytest.raises(DiptychError, match=r"^the load generator could not measure: Nothing answers at "):
        loaded(1, QuerySet(["red shoes"], tmp_path), 50, 0.5)
