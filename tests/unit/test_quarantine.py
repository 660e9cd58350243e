"""Queries that ended engines."""

import pytest

from service.errors import Refusal
from service.frames import Asked
from service.quarantine import MAX_QUERIES, SECONDS, Quarantine


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
