"""Each caller's share of the engine and of the queue, and the limits of one request."""

import asyncio

import pytest

from service.batching.pending_request import PendingRequest
from service.engine.protocol import BatchAnswers, Outcome, Query, QueryAnswer
from service.errors import Refusal
from tests.support.batching import NO_TIME, Bench, Clock, played


def test_a_cancelled_handler_leaves_the_queue() -> None:
    """A handler that is cancelled would keep its place forever, and no bundle could drain."""

    @played(batches_ahead=0)
    async def _(bench: Bench) -> None:
        async def handler(request: PendingRequest) -> bytes:
            return await request.answer

        bench.attach()
        handlers = [asyncio.create_task(handler(bench.ask(text))) for text in "abc"]
        await asyncio.sleep(0)
        for one in handlers[:2]:  # one at the engine, one in the queue
            one.cancel()
        await asyncio.wait(handlers[:2])
        await asyncio.sleep(0)
        assert (bench.batcher.unfinished, bench.batcher.waiting_queries) == (1, 1)
        bench.answer()
        assert bench.texts()[1:] == [["c"]]
        bench.answer()
        assert await handlers[2] == b"c"
        await asyncio.wait_for(bench.batcher.drained(), 60)


def test_a_batch_is_bounded_in_hits() -> None:
    """All other requests would wait for ten texts with a hundred hits each, which cost as much as a whole batch."""

    @played(max_queries=8, max_batch_hits=250, batches_ahead=0)
    async def _(bench: Bench) -> None:
        bench.attach()
        bench.batcher.admit(Query.create([f"{number}" for number in range(5)], 100))
        bench.batcher.admit(Query.create(["a", "b"], 1000))
        for _ in range(4):
            bench.answer()
        assert bench.texts() == [["0", "1"], ["2", "3"], ["4"], ["a"], ["b"]]


def test_small_requests_share_no_batch_with_large_ones() -> None:
    """A single query would be answered only after the hundreds of hits in the same batch."""

    @played(clock=Clock(), max_queries=32, batches_ahead=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        large = Query.create([f"{number}" for number in range(32)], 100)
        bench.batcher.admit(large, caller=b"heavy")
        bench.batcher.admit(large, caller=b"heavy")
        small = bench.batcher.admit(Query.create(["small"], 10), caller=b"light")
        for _ in range(2):  # those that had been sent
            bench.answer()
        assert bench.texts()[2] == ["small"]
        bench.answer()
        assert small.answer.done()
        bench.answer()
        assert len(bench.texts()[-1]) == 2  # and nothing is sent ahead of the next small one
        assert len(bench.sent) == bench.answered + 1


def test_a_caller_under_its_share_is_admitted_to_a_full_queue() -> None:
    """A caller with one text would be refused because another has filled the queue, or the queue would be unlimited."""

    @played(max_queries=8, max_waiting_queries=40)
    async def _(bench: Bench) -> None:
        heavy = [bench.batcher.admit(Query.create(["h"] * 8, 10), caller=b"heavy") for _ in range(5)]
        assert bench.batcher.full
        assert bench.batcher.turns_away(b"heavy")
        assert not bench.batcher.turns_away(b"light")
        with pytest.raises(Refusal):
            bench.batcher.admit(Query.create(["h"], 10), caller=b"heavy")
        with pytest.raises(Refusal):
            bench.batcher.refuse_early(b"heavy", 1)
        bench.batcher.refuse_early(b"light", 1)
        lights = [bench.batcher.admit(Query.create(["l"], 10), caller=b"light") for _ in range(15)]
        assert not any(request.answer.done() for request in heavy)
        for number in range(25):
            lights.append(bench.batcher.admit(Query.create(["l"], 10), caller=b"light%d" % number))
        assert [request.answer.done() for request in heavy] == [False] * 5
        newcomer = bench.batcher.admit(Query.create(["n"], 10), caller=b"newcomer")
        assert [request.answer.done() for request in heavy] == [False] * 4 + [True]  # the newest of who has most
        refusal = heavy[-1].answer.exception()
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (429, "overloaded")
        assert bench.batcher.waiting_queries <= 80
        bench.attach()
        while bench.batcher.unfinished:
            bench.answer()
        assert await newcomer.answer == b"n"


def test_a_postponed_query_is_sent_again() -> None:
    """A query whose answer does not fit into its batch would be lost, or answered with an error."""

    @played(max_queries=4, batches_ahead=0)
    async def _(bench: Bench) -> None:
        first, second = bench.ask("a", "b"), bench.ask("c", "d")
        bench.attach()
        bodies = [QueryAnswer(Outcome.ANSWERED, b"a,b"), QueryAnswer(Outcome.POSTPONED)]
        bench.batcher.on_answers(BatchAnswers(1, NO_TIME, bodies))
        bench.answered = 1
        bench.answer()
        assert (await first.answer, await second.answer) == (b"a,b", b"c,d")


def test_an_answer_is_bounded_in_bytes() -> None:
    """A few texts with labels of a megabyte would fill the memory of the service."""

    @played(max_queries=20, max_answer_bytes=1024)
    async def _(bench: Bench) -> None:
        request, other = bench.ask(*["x" * 100] * 16), bench.ask("y")
        bench.attach()
        while bench.batcher.unfinished:
            bench.answer()
        refusal = request.answer.exception()
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (422, "answer_too_large")
        assert await other.answer == b"y"


def test_only_the_text_that_ends_engines_is_in_quarantine() -> None:
    """A caller could have any text refused for all callers by sending it together with one that kills engines."""

    @played(max_queries=4, batches_ahead=0)
    async def _(bench: Bench) -> None:
        request = bench.attach().ask("good", "poison", "fine")
        assert not bench.batcher.on_engine_death()  # the first end may be the bundle's fault
        bench.attach()
        assert bench.texts()[-1] == ["good"]
        bench.answered = 1
        bench.answer()
        assert bench.texts()[-1] == ["poison"]
        assert bench.batcher.on_engine_death()
        assert isinstance(refusal := request.answer.exception(), Refusal)
        assert (refusal.status, refusal.code) == (422, "quarantined")
        with pytest.raises(Refusal, match="'poison'"):
            bench.ask("other", "poison")
        bench.attach().ask("good", "fine")
        bench.batcher.admit(Query.create(["poison"], 5))  # asked otherwise, it may be answered


def _deaths(bench: Bench, callers: list[bytes]) -> list[bool]:
    """Let a query of each caller end two engines; return which of the deaths were excused."""
    excused = []
    for number, caller in enumerate(callers):
        bench.attach().batcher.admit(Query.create([f"query {number}"], 10), caller=caller)
        excused += [bench.batcher.on_engine_death()]
        bench.attach()
        excused += [bench.batcher.on_engine_death()]
    return excused


def test_a_bundle_that_answers_nothing_is_not_excused() -> None:
    """A bundle on which every query kills the engine would be served forever, because each query would be blamed."""

    @played(batches_ahead=0)
    async def _(bench: Bench) -> None:
        assert _deaths(bench, [b"a", b"b", b"a"]) == [False, True, False, False, False, False]


def test_one_caller_cannot_force_another_bundle() -> None:
    """A caller with several queries that kill engines could force a fallback."""

    @played(batches_ahead=0)
    async def _(bench: Bench) -> None:
        assert _deaths(bench, [b"a"] * 6) == [False, True] * 6

    @played(batches_ahead=0)
    async def _(bench: Bench) -> None:
        for number in range(6):  # all of them in flight when the first engine ends
            bench.batcher.admit(Query.create([f"query {number}"], 10), caller=b"a")
        excused = []
        for _ in range(7):
            bench.attach()
            excused.append(bench.batcher.on_engine_death())
        assert excused == [False] + [True] * 6


def test_incomplete_answers_are_bounded() -> None:
    """Answers of megabytes that are ready in parts would fill the memory before any of them is complete."""

    @played(connection_bytes=1 << 24, max_queries=8)
    async def _(bench: Bench) -> None:
        large = Query.create(["text"] * 8, 2000)  # 3.2 MB, as long as nothing is known of the answers
        first = bench.attach().batcher.admit(large, caller=b"heavy")
        with pytest.raises(Refusal, match=r"answers of 3200000 bytes already wait"):
            bench.batcher.admit(large, caller=b"heavy")
        bench.batcher.admit(Query.create(["small"], 10), caller=b"light")
        while not first.answer.done():
            bench.answer()
        bench.batcher.admit(large, caller=b"heavy")


def test_a_costly_filter_is_charged_to_its_caller() -> None:
    """A filter that takes the engine a hundred times as long would cost its caller no more than a plain query."""

    @played(max_batch_queries=1, batches_ahead=0, max_waiting_queries=1000)
    async def _(bench: Bench) -> None:
        bench.attach()
        plain, filtered = Query.create(["plain"], 10), Query.create(["filtered"], 10, filter={"a": [1]})
        for _ in range(30):
            bench.batcher.admit(plain, caller=b"plain")
            bench.batcher.admit(filtered, caller=b"filtered")
        for _ in range(40):
            seconds = 0.01 if bench.sent[bench.answered][0].filter else 0.001
            bench.answered += 1
            stages = NO_TIME._replace(total=seconds)
            bench.batcher.on_answers(BatchAnswers(bench.answered, stages, [QueryAnswer(Outcome.ANSWERED, b"")]))
        counted = [batch[0].texts[0] for batch in bench.sent[:40]]
        assert counted.count("plain") == 30
        assert counted[:33].count("filtered") <= 5
