"""Random orders of arrivals, answers, deaths, disconnects and cancellations; and each caller's share of the engine."""

import asyncio
from collections.abc import Callable
from time import perf_counter

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.batching.token_estimator import TokenEstimator
from service.engine.protocol import HEAD, Batch, BatchAnswers, Outcome, Query, QueryAnswer, Stages, decode_batch
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.settings import Settings
from tests.support.batching import Clock

CALLERS = (b"a", b"b", b"c")
KS = (1, 3, 10)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 12), st.sampled_from(CALLERS), st.sampled_from(KS)),
        st.tuples(st.just("answer"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["abandon", "cancel"]), st.integers(0, 30)),
        st.tuples(st.sampled_from(["die", "attach", "hand_over", "postpone"]), st.just(0)),
    ),
    max_size=60,
)
NO_TIME = Stages(0, 0, 0, 0, 0, 0, 0)
MAX_HITS = 20


class Play:
    """One run: every request's texts are numbered, so that a mixed-up answer shows."""

    def __init__(self, padded: bool, threads: int, room: int, clock: Callable[[], float] = perf_counter) -> None:
        limits = {"max_queries": 12, "max_batch_queries": 5, "max_slice_queries": 2, "max_batch_hits": MAX_HITS}
        self.settings = Settings(store="unused", max_waiting_queries=room, max_waiting_tokens=1 << 20, **limits)
        self.padded, self.threads, self.clock = padded, threads, clock
        self.batcher = self.new_batcher()
        self.requests = []
        self.sent: list[Batch] = []
        self.gone = set()  # abandoned or cancelled
        self.admitted = 0

    def new_batcher(self) -> Batcher:
        return Batcher(
            "words", self.settings, Metrics(CollectorRegistry()), TokenEstimator(1.0, 512, self.padded), self.clock
        )

    def ask(self, texts: int, caller: bytes, k: int) -> None:
        queries = [f"{self.admitted}.{'0' * (number % 4 * 8)}{number}" for number in range(texts)]
        self.admitted += 1
        waiting = self.waiting_texts()
        others = len({*waiting, caller})
        try:
            self.requests.append(self.batcher.admit(Query.create(queries, k, None), caller=caller))
        except Refusal:
            tokens = sum(self.batcher.estimator.estimate(queries))
            places = self.batcher._waiting.places(texts, tokens)
            total = self.batcher._waiting.places_of(caller) + places
            assert total > self.settings.max_waiting_queries / others or set(waiting) == {caller}

    def waiting_texts(self) -> dict[bytes, int]:
        texts_per_caller: dict[bytes, int] = {}
        for request in self.requests:
            texts = sum(stop - start for start, stop in request.todo)
            if texts and not request.settled:
                texts_per_caller[request.caller] = texts_per_caller.get(request.caller, 0) + texts
        return texts_per_caller

    def answer(self, thread: int, outcome: Outcome = Outcome.ANSWERED) -> None:
        if self.sent:
            batch = self.sent.pop(min(thread % self.threads, len(self.sent) - 1))
            bodies = [QueryAnswer(Outcome.ANSWERED, ",".join(part.texts).encode()) for part in batch.queries]
            bodies[1:] = [QueryAnswer(outcome, body if outcome is Outcome.ANSWERED else b"") for _, body in bodies[1:]]
            self.batcher.on_answers(BatchAnswers(batch.number, NO_TIME, bodies))

    def postpone(self, _: int) -> None:
        """The first slice of a batch is answered, the others were too much for the engine."""
        self.answer(0, Outcome.POSTPONED)

    def die(self, _: int) -> None:
        self.sent.clear()
        self.batcher.on_engine_death()

    def attach(self, _: int) -> None:
        self.sent.clear()
        self.batcher.on_engine_death()
        self.batcher.attach(lambda frame: self.sent.append(decode_batch(frame[HEAD.size :])), self.threads)

    def abandon(self, number: int) -> None:
        if number < len(self.requests):
            self.gone.add(number)
            self.requests[number].abandon()

    def cancel(self, number: int) -> None:
        """Cancel the future of an answer, as a cancelled handler does; the batcher is not called."""
        if number < len(self.requests):
            self.gone.add(number)
            self.requests[number].answer.cancel()

    def hand_over(self, _: int) -> None:
        """Another bundle adopts the requests."""
        former, self.batcher = self.batcher, self.new_batcher()
        former.drain_to(self.batcher)
        self.sent.clear()
        assert (former.unfinished, former.waiting_queries, former.waiting_tokens) == (0, 0, 0)

    def check(self) -> None:
        """Check what must hold after every event."""
        waiting = self.waiting_texts()
        assert self.batcher.waiting_queries == sum(waiting.values())
        assert self.batcher.unfinished == sum(not request.settled for request in self.requests)
        assert self.batcher._waiting.callers == len(waiting)
        if self.admitted % 3 == 0:  # the queue ranks its callers from the first time that it is asked
            queue = self.batcher._waiting
            heaviest = queue.heaviest()
            assert (heaviest is None) == (not waiting)
            assert heaviest is None or queue.places_of(heaviest.caller) == max(map(queue.places_of, waiting))
        for slices in (batch.queries for batch in self.sent):
            hits = sum(len(part.texts) * part.k for part in slices)
            assert hits <= MAX_HITS or sum(len(part.texts) for part in slices) == 1


@settings(max_examples=250)
@given(EVENTS, st.booleans(), st.integers(1, 3), st.sampled_from([12, 30, 10_000]))
def test_every_request_is_settled_once_and_with_its_own_answer(
    events: list[tuple], padded: bool, threads: int, room: int
) -> None:
    """Some order of events would lose a request, return another's results, keep its place in the queue, or refuse a
    caller below its share.
    """

    async def run() -> None:
        play = Play(padded, threads, room)
        for name, *arguments in events:
            getattr(play, name)(*arguments)
            await asyncio.sleep(0)
            play.check()
        play.attach(0)
        while play.sent:
            play.answer(0)
        for number, request in enumerate(play.requests):
            assert request.answer.done()
            if request.answer.cancelled():
                assert number in play.gone
            elif (refusal := request.answer.exception()) is None:
                assert request.answer.result() == ",".join(request.texts).encode()
            else:
                assert number in play.gone or refusal.code == "overloaded" or request.deaths == 2
        play.check()
        assert (play.batcher.unfinished, play.batcher.waiting_queries, play.batcher.waiting_tokens) == (0, 0, 0)
        await asyncio.wait_for(play.batcher.drained(), 60)

    asyncio.run(run())


LOADS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(KS)), min_size=1, max_size=12)


@settings(max_examples=150)
@given(st.lists(LOADS, min_size=2, max_size=5), st.booleans())
def test_waiting_callers_get_equal_shares(loads: list[list[tuple[int, int]]], late: bool) -> None:
    """A caller would get more of the engine for more texts, for larger k, for more requests, or for coming later than
    the others."""

    async def run() -> None:
        play = Play(padded=False, threads=1, room=10_000)
        play.attach(0)
        received: dict[bytes, int] = {}
        since: dict[bytes, int] = {}  # what the others had received when a caller came

        def ask(number: int) -> None:
            caller = b"caller%d" % number
            for texts, k in loads[number]:
                play.ask(texts, caller, k)
            waiting = play.waiting_texts()
            since[caller] = min((received.get(one, 0) for one in waiting if one in received), default=0)
            received[caller] = 0

        for number in range(len(loads) - late):
            ask(number)
        slice_cost = 2 * (max(KS) + 40)
        for turn in range(10_000):
            if late and turn == 3:
                ask(len(loads) - 1)
            before = play.waiting_texts()
            if not play.sent:
                break
            slices = play.sent[0].queries
            for part in slices:
                request = next(one for one in play.requests if set(part.texts) <= set(one.texts))
                start = list(request.texts).index(part.texts[0])
                received[request.caller] += request.cost(start, start + len(part.texts))
            play.answer(0)
            totals = [received[caller] + since[caller] for caller in before]
            if len(totals) > 1 and not late:
                # what is in flight has been given, and is counted only when it is answered
                assert max(totals) - min(totals) <= 2 * slice_cost + 2 * MAX_HITS + 200

    asyncio.run(run())


@settings(max_examples=60)
@given(st.integers(1, 16), st.integers(4, 12), st.integers(5, 20))
def test_a_small_request_waits_for_at_most_one_batch(heavy: int, texts: int, requests: int) -> None:
    """A caller with one text now and then would wait for all texts of callers with many."""

    async def run() -> None:
        play = Play(padded=False, threads=1, room=10_000, clock=Clock())
        play.attach(0)
        for number in range(heavy * requests):
            play.ask(texts, b"heavy%d" % (number % heavy), 10)
        for _ in range(5):
            for _ in range(7):
                play.answer(0)
            play.ask(1, b"light", 1)
            light = play.requests[-1]
            for _ in range(4):  # the one at work, the one that was sent ahead, one of who is behind, and its own
                play.answer(0)
            assert light.answer.done()

    asyncio.run(run())
