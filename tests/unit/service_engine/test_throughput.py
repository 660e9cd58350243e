"""The throughput estimate, which converts the queue's length to seconds."""

import pytest

from service.batching.throughput import WINDOW_SECONDS, ThroughputEstimate


def answer(estimate: ThroughputEstimate, texts: int, apart: float, start: float = 0.0) -> float:
    """Batches of so many texts, so many seconds apart, for three windows, with more waiting; returns the time then."""
    now = start
    while now < start + 3 * WINDOW_SECONDS:
        estimate.update(texts, True, now)
        now += apart
    return now


def test_the_pace_is_that_of_an_engine_that_never_lacked_work() -> None:
    """An engine that mostly waits for texts would count as slow, and a short burst would be refused."""
    estimate = ThroughputEstimate()
    for number in range(100):
        estimate.update(1, number % 2 == 0, number * 0.1)
    assert estimate.texts_per_second is None
    answer(estimate, 8, 0.01, start=20)
    assert estimate.texts_per_second == pytest.approx(800)


def test_the_pace_follows_the_engine() -> None:
    """With longer texts, or while a bundle loads, the queue would hold more than is answered in its time limit."""
    estimate = ThroughputEstimate()
    now = answer(estimate, 8, 0.01)
    for _ in range(4):
        now = answer(estimate, 8, 0.04, start=now)
    assert estimate.texts_per_second == pytest.approx(200, rel=0.1)


def test_the_estimate_ignores_texts_that_arrived_without_an_engine() -> None:
    """The queue of a dead engine may grow; judged at once by its replacement's throughput, new requests would be
    refused.
    """
    estimate = ThroughputEstimate()
    answer(estimate, 8, 0.01)
    estimate.reset()
    now = answer(estimate, 8, 0.01, start=10)
    assert estimate.texts_per_second is None
    estimate.update(8, False, now)
    answer(estimate, 8, 0.01, start=now)
    assert estimate.texts_per_second == pytest.approx(800)
