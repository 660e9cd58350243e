"""Queries that ended engines."""

import pytest
from pydantic_core import to_json

from service.batching.quarantine import MAX_QUERIES, SECONDS, Quarantine
from service.engine.protocol import Asked
from service.errors import Refusal


def test_the_memory_of_queries_is_bounded_and_ends() -> None:
    """Texts without end would fill the memory; or a text that was blamed by mistake would never be answered again."""
    quarantine = Quarantine()
    for number in range(2 * MAX_QUERIES):
        quarantine.add(Asked([], 10), [f"text {number}"], now=0)
    assert len(quarantine) == MAX_QUERIES
    quarantine.check(Asked(["text 0"], 10), now=1)
    last = Asked(["fine", f"text {2 * MAX_QUERIES - 1}"], 10)
    with pytest.raises(Refusal) as refused:
        quarantine.check(last, now=1)
    assert (refused.value.status, refused.value.code) == (422, "quarantined")
    quarantine.check(last, now=SECONDS + 1)
    assert len(quarantine) == 0


def test_the_options_of_a_request_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While anything is in quarantine, a large filter would be written out for each of a request's texts."""
    calls: list[object] = []

    def counted(value: object) -> bytes:
        calls.append(value)
        return to_json(value)

    quarantine = Quarantine()
    options = Asked([], 10, filter={"market": ["US"]})
    quarantine.add(options, ["bad"])
    monkeypatch.setattr("service.batching.quarantine.to_json", counted)
    quarantine.check(options._replace(queries=["fine"] * 256))
    assert len(calls) == 1
    quarantine.check(options._replace(queries=["bad"], k=11))
    with pytest.raises(Refusal):
        quarantine.check(options._replace(queries=["fine", "bad"]))
