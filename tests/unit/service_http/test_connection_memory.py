"""The choice of requests to end when all connections together exceed the memory budget."""

from dataclasses import dataclass, field

from service.connections.memory_budget import ENDED_TOGETHER, RELIEVED, STALLED, MemoryBudget

MB = 1 << 20


@dataclass
class Holding:
    """A connection that holds bytes since a moment; `ended` has all that were ended, in order."""

    name: str
    held: int
    held_since: float
    ended: list[str]
    budget: "list[MemoryBudget]" = field(default_factory=list)

    def shed(self) -> None:
        self.ended.append(self.name)
        self.budget[0].used -= self.held
        self.held = 0


def filled(holdings: list[Holding], limit: int) -> MemoryBudget:
    """Return the budget of some connections, with all that they hold."""
    budget = MemoryBudget(limit, lambda: holdings)
    for one in holdings:
        one.budget.append(budget)
        budget.add(one.held)
    return budget


def test_the_largest_and_longest_stalled_end_first_and_only_as_many_as_needed() -> None:
    """A client that has just started would be closed instead of stalled ones, or more clients than needed."""
    ended: list[str] = []
    old, large = Holding("old", MB, 0.0, ended), Holding("large", 3 * MB, 50.0, ended)
    new, small = Holding("new", 9 * MB, 99.9, ended), Holding("small", 1000, 0.0, ended)
    budget = filled([small, new, old, large], 13 * MB)
    assert budget.exceeded
    budget.relieve(new, 100.0)
    assert ended == ["large"]
    assert not budget.exceeded


def test_few_are_ended_together() -> None:
    """Ending thousands of requests at once would delay all others by a fraction of a second."""
    ended: list[str] = []
    stalled = [Holding(f"{number}", MB, number * 0.001, ended) for number in range(100)]
    sender = Holding("sender", MB, 99.0, ended)
    budget = filled([*stalled, sender], 50 * MB)
    rounds = 0
    while budget.used > RELIEVED * budget.limit:
        before = len(ended)
        budget.relieve(Holding("one with little", 10, 99.0, ended, [budget]), 99.0 + STALLED / 2)
        assert len(ended) - before <= ENDED_TOGETHER
        rounds += 1
    assert ended == [f"{number}" for number in range(len(ended))]
    assert rounds == -(-len(ended) // ENDED_TOGETHER)
    assert sender.held


def test_the_sender_ends_when_no_connection_stalls() -> None:
    """Clients that send as fast as they can would fill the memory."""
    ended: list[str] = []
    senders = [Holding(f"{number}", MB, 99.5, ended) for number in range(3)]
    budget = filled(senders, 2 * MB)
    budget.relieve(senders[1], 100.0)
    assert ended == ["1"]


def test_a_request_that_no_longer_stalls_is_not_ended() -> None:
    """A connection that stalled at the search, and has got its answer since, would lose its next request."""
    ended: list[str] = []
    stalled = [Holding(f"{number}", MB, 0.0, ended) for number in range(10)]
    budget = filled(stalled, 2 * MB)
    little = Holding("one with little", 10, 0.0, ended, [budget])
    budget.relieve(little, 10.0)
    stalled[ENDED_TOGETHER].held_since = 10.0
    while budget.exceeded and len(ended) < 9:
        budget.relieve(little, 10.1)
    assert f"{ENDED_TOGETHER}" not in ended
