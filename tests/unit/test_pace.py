"""What a queue's length means in time."""

import pytest

from service.batching.throughput import WINDOW, Pace


def answer(pace: Pace, texts: int, apart: float, start: float = 0.0) -> float:
    """Batches of so many texts, so many seconds apart, for three windows, with more waiting; returns the time then."""
    now = start
    while now < start + 3 * WINDOW:
        pace.answered(texts, True, now)
        now += apart
    return now


def test_the_pace_is_that_of_an_engine_that_never_lacked_work() -> None:
    """An engine that waits for texts most of the time would pass for a slow one, and a short burst be refused."""
    pace = Pace()
    for number in range(100):
        pace.answered(1, number % 2 == 0, number * 0.1)
    assert pace.rate is None
    answer(pace, 8, 0.01, start=20)
    assert pace.rate == pytest.approx(800)


def test_the_pace_follows_the_engine() -> None:
    """Longer texts, or a bundle loading beside, would leave a queue in which requests wait too long."""
    pace = Pace()
    now = answer(pace, 8, 0.01)
    for _ in range(4):
        now = answer(pace, 8, 0.04, start=now)
    assert pace.rate == pytest.approx(200, rel=0.1)


def test_what_came_while_there_was_no_engine_says_nothing_of_the_next_one() -> None:
    """Behind a dead engine a queue may grow; judged at once by its replacement's pace, new requests would be lost."""
    pace = Pace()
    answer(pace, 8, 0.01)
    pace.forget()
    now = answer(pace, 8, 0.01, start=10)
    assert pace.rate is None
    pace.answered(8, False, now)
    answer(pace, 8, 0.01, start=now)
    assert pace.rate == pytest.approx(800)
