"""Queries that ended engines."""

import pytest

from service.batching.quarantine import MAX_QUERIES, SECONDS, Quarantine
from service.engine.protocol import Query
from service.errors import Refusal


def test_the_memory_of_queries_is_bounded_and_ends() -> None:
    """Endless texts would fill the memory, or a text that was blamed by mistake would never be answered again."""
    quarantine = Quarantine()
    for number in range(2 * MAX_QUERIES):
        quarantine.add(Query.create([], 10), [f"text {number}"], now=0)
    assert len(quarantine) == MAX_QUERIES
    quarantine.check(Query.create(["text 0"], 10), now=1)
    last = Query.create(["fine", f"text {2 * MAX_QUERIES - 1}"], 10)
    with pytest.raises(Refusal) as refused:
        quarantine.check(last, now=1)
    assert (refused.value.status, refused.value.code) == (422, "quarantined")
    quarantine.check(last, now=SECONDS + 1)
    assert len(quarantine) == 0


def test_spellings_of_a_query_are_in_quarantine_together() -> None:
    """Each spelling of a query that ends engines would end two more of them."""
    quarantine = Quarantine(query_identity=1)
    quarantine.add(Query.create([], 10), ["Bad  query"])
    with pytest.raises(Refusal, match="ｂａｄ query"):
        quarantine.check(Query.create(["fine", "ｂａｄ query"], 10))
    older = Quarantine(query_identity=0)
    older.add(Query.create([], 10), ["Bad  query"])
    older.check(Query.create(["bad query"], 10))


def test_the_options_of_a_request_are_encoded_once() -> None:
    """While a text is in quarantine, a large filter would be encoded for each of a request's texts."""
    encoded: list[Query] = []

    class CountingQuery(Query):
        def to_bytes(self) -> bytes:
            encoded.append(self)
            return super().to_bytes()

    quarantine = Quarantine()
    options = CountingQuery.create([], 10, filter={"market": ["US"]})
    quarantine.add(options, ["bad"])
    encoded.clear()
    quarantine.check(options.with_texts(["fine"] * 256))
    assert len(encoded) == 1
    quarantine.check(CountingQuery.create(["bad"], 11, filter={"market": ["US"]}))
    with pytest.raises(Refusal):
        quarantine.check(options.with_texts(["fine", "bad"]))
