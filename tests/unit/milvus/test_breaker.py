"""The circuit breaker in front of an index server."""

import pytest

from retrieval.errors import IndexUnavailable
from retrieval.milvus.breaker import FAILURES, PROBE_SECONDS, CircuitBreaker


class Server:
    """A server that is away or not, the time, and the calls that it got; a pause takes a second."""

    def __init__(self, wait_seconds: float) -> None:
        self.now, self.calls, self.away = 0.0, 0, True
        self.back_at = float("inf")
        self.breaker = CircuitBreaker(wait_seconds, lambda: self.now, lambda seconds: self.advance(1.0))

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def work(self) -> str:
        self.calls += 1
        if self.away and self.now < self.back_at:
            raise IndexUnavailable("away")
        return "answer"


def test_a_search_waits_for_a_server_that_restarts() -> None:
    """If it fails, requests are lost although the server is back within the time that they may wait."""
    server = Server(wait_seconds=30)
    server.back_at = 20
    assert server.breaker.call(server.work) == "answer"
    assert not server.breaker.is_open


def test_searches_fail_at_once_after_the_wait() -> None:
    """If it fails, every request of a long outage occupies a thread until it gives up."""
    server = Server(wait_seconds=10)
    with pytest.raises(IndexUnavailable):
        server.breaker.call(server.work)
    calls, now = server.calls, server.now
    assert now >= 10
    with pytest.raises(IndexUnavailable):
        server.breaker.call(server.work)
    assert (server.calls, server.now) == (calls, now)


def test_one_search_finds_out_that_the_server_is_back() -> None:
    """If it fails, the service stays unavailable after the outage, or all searches go to a server that is away."""
    server = Server(wait_seconds=0)
    with pytest.raises(IndexUnavailable):
        server.breaker.call(server.work)
    assert server.calls == FAILURES
    server.advance(PROBE_SECONDS)
    for _ in range(3):
        with pytest.raises(IndexUnavailable):
            server.breaker.call(server.work)
    assert server.calls == FAILURES + 1, "one probe"
    server.away = False
    server.advance(PROBE_SECONDS)
    assert server.breaker.call(server.work) == "answer"
    assert server.breaker.call(server.work) == "answer"
    assert not server.breaker.is_open


def test_single_failures_open_nothing() -> None:
    """If it fails, one lost connection of a server that runs makes requests fail."""
    server = Server(wait_seconds=0)
    for _ in range(3 * FAILURES):
        server.back_at = server.now + 1  # one failure, and a pause
        assert server.breaker.call(server.work) == "answer"
    assert not server.breaker.is_open
