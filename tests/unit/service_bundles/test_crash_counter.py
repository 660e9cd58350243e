"""Counting of engines that end in a short time."""

from service.bundles.generation import CrashCounter


def test_only_recent_ends_count() -> None:
    """A bundle whose engines die once a day would be given up after a week."""
    counter = CrashCounter(60)
    assert [counter.add(now, excused=False) for now in (0, 10, 59, 60, 71, 200)] == [1, 2, 3, 4, 3, 1]


def test_ends_that_a_query_caused_do_not_count() -> None:
    """A caller could choose its texts so that the service rolls back to another bundle."""
    counter = CrashCounter(60)
    assert [counter.add(1, excused=False), counter.add(2, excused=True), counter.add(3, excused=True)] == [1, 0, 0]
