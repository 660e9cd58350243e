"""Any order of arrivals, answers, deaths and departures."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.batching import Batcher, Lengths
from service.frames import HEAD, Answers, Asked, Outcome, Stages, unpack_batch
from service.metrics import Metrics
from service.settings import Settings

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 12)),
        st.tuples(st.just("answer"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["die", "attach", "abandon", "give_up"]), st.just(0)),
    ),
    max_size=60,
)


class Play:
    """One run: every request's texts are numbered, so that a mixed-up answer shows."""

    def __init__(self, padded: bool, lanes: int) -> None:
        limits = {"max_queries": 12, "max_waiting_queries": 10_000, "max_batch_queries": 5, "max_piece_queries": 2}
        self.settings, self.padded, self.lanes = Settings(store="unused", **limits), padded, lanes
        self.batcher = self.new_batcher()
        self.tickets = []
        self.sent: list[tuple[int, list[Asked]]] = []
        self.abandoned = set()

    def new_batcher(self) -> Batcher:
        return Batcher("words", self.settings, Metrics(CollectorRegistry()), Lengths(1.0, 512, self.padded))

    def ask(self, texts: int) -> None:
        queries = [f"{len(self.tickets)}.{'0' * (number % 4 * 8)}{number}" for number in range(texts)]
        self.tickets.append(self.batcher.admit(Asked(queries, 10, None)))

    def answer(self, lane: int) -> None:
        if self.sent:
            number, pieces = self.sent.pop(min(lane % self.lanes, len(self.sent) - 1))
            bodies = [(Outcome.ANSWERED, ",".join(piece.queries).encode()) for piece in pieces]
            self.batcher.answered(Answers(number, Stages(0, 0, 0, 0, 0, 0, 0), bodies))

    def die(self, _: int) -> None:
        self.sent.clear()
        self.batcher.lost()

    def attach(self, _: int) -> None:
        self.batcher.attach(lambda frame: self.sent.append(unpack_batch(frame[HEAD.size :])), self.lanes)

    def abandon(self, _: int) -> None:
        if self.tickets:
            self.abandoned.add(len(self.tickets) - 1)
            self.tickets[-1].abandon()

    def give_up(self, _: int) -> None:
        """Another bundle takes over, whatever its predecessor was doing."""
        former, self.batcher = self.batcher, self.new_batcher()
        self.batcher.take_over(former.hand_over())
        self.sent.clear()
        assert (former.unfinished, former.waiting_queries, former.waiting_tokens) == (0, 0, 0)


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.booleans(), st.integers(1, 3))
def test_every_request_is_settled_once_and_with_its_own_answer(
    events: list[tuple[str, int]], padded: bool, lanes: int
) -> None:
    """Some order of events would lose a request, answer it with another's results, or leak its place in the queue."""

    async def run() -> None:
        play = Play(padded, lanes)
        for name, argument in events:
            getattr(play, name)(argument)
        play.attach(0)
        while play.sent:
            play.answer(0)
        for number, ticket in enumerate(play.tickets):
            assert ticket.answer.done()
            if ticket.answer.exception() is None:
                whole = ",".join(ticket.asked.queries)
                assert ticket.answer.result() == whole.encode()
            else:
                assert number in play.abandoned or ticket.deaths == 2
        assert (play.batcher.unfinished, play.batcher.waiting_queries, play.batcher.waiting_tokens) == (0, 0, 0)
        await play.batcher.drained()

    asyncio.run(run())
