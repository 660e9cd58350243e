"""The batcher with an engine that the test plays: it gets frames through `send` and returns answers."""

import pytest

from service.engine.protocol import BatchAnswers, Outcome, Query, QueryAnswer, Stages
from service.errors import Refusal
from tests.support.batching import NO_TIME, Bench, Clock, played


def test_an_idle_engine_gets_work_immediately() -> None:
    """A delay timer before the engine would add its length to every answer of a calm server."""

    @played(batches_ahead=0)
    async def _(bench: Bench) -> None:
        request = bench.attach().ask("one")
        assert bench.texts() == [["one"]]
        bench.answer()
        assert await request.answer == b"one"


def test_waiting_requests_form_the_next_batch() -> None:
    """If waiting requests were sent one by one, a busy engine would never profit from batches."""

    @played(batches_ahead=0)
    async def _(bench: Bench) -> None:
        bench.attach()
        requests = [bench.ask(text) for text in "abcd"]
        assert bench.texts() == [["a"]]
        bench.answer()
        assert bench.texts()[1:] == [["b", "c", "d"]]
        bench.answer()
        assert [await request.answer for request in requests] == [b"a", b"b", b"c", b"d"]


def test_admission_is_bounded_in_texts_and_freed_by_answers() -> None:
    """Without the limit, overload would fill the memory and every answer would be late."""

    @played(max_waiting_queries=2)
    async def _(bench: Bench) -> None:
        bench.ask("a"), bench.ask("b")
        with pytest.raises(Refusal) as refused:
            bench.ask("c")
        assert refused.value.status == 429
        bench.attach()
        assert bench.batcher.waiting_queries == bench.batcher.waiting_tokens == 0
        bench.ask("c")


def test_admission_is_bounded_in_tokens() -> None:
    """A few long texts, which cost the engine as much as many short ones, would exceed the queue's limit."""

    @played(max_waiting_tokens=100)
    async def _(bench: Bench) -> None:
        bench.ask("x" * 90)
        with pytest.raises(Refusal, match="tokens already wait"):
            bench.ask("y" * 20)


def test_admission_is_bounded_in_time() -> None:
    """Clients of a slow encoder would wait much longer in the same queue, or requests would be lost while an engine is
    replaced.
    """
    clock = Clock()

    @played(clock=clock, batches_ahead=0, max_batch_queries=1, max_waiting_queries=30, max_waiting_seconds=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        for number in range(30):
            bench.ask(f"{number}")
        assert not bench.batcher.full
        for _ in range(8):
            clock.now += 0.125
            bench.answer()
        with pytest.raises(Refusal, match="21 texts already wait"):
            bench.ask("one more than is answered in a second")
        for _ in range(13):
            bench.answer()
        assert bench.batcher.full
        bench.answer()
        bench.ask("the eighth of eight")
        bench.batcher.on_engine_death()
        for number in range(21):
            bench.ask(f"for the next engine {number}")


def test_a_request_past_its_deadline_is_answered_and_never_sent() -> None:
    """An engine would work for clients that no longer wait, and fall further behind."""

    @played(deadline_seconds=0.01)
    async def _(bench: Bench) -> None:
        request = bench.ask("late")
        with pytest.raises(Refusal) as refused:
            await request.answer
        assert refused.value.status == 504
        assert bench.attach().sent == []
        assert bench.batcher.unfinished == bench.batcher.waiting_queries == 0


def test_an_abandoned_request_leaves_the_queue() -> None:
    """A client that has closed its connection would keep its place in the queue, and cost the engine work."""

    @played()
    async def _(bench: Bench) -> None:
        gone, stays = bench.ask("gone"), bench.ask("stays")
        bench.batcher.abandon(gone)
        assert bench.batcher.waiting_queries == 1
        assert bench.attach().texts() == [["stays"]]
        bench.answer()
        assert await stays.answer == b"stays"
        assert isinstance(gone.answer.exception(), Refusal)


def test_a_large_request_cannot_block_small_ones() -> None:
    """Single queries after a client's bulk request would wait until all of it is done."""

    @played(max_queries=100, max_batch_queries=4, max_slice_queries=2, batches_ahead=0)
    async def _(bench: Bench) -> None:
        bench.ask("busy")
        bulk = bench.ask(*(f"bulk{number}" for number in range(9)))
        single = bench.ask("single")
        bench.attach()
        assert bench.texts() == [["busy", "bulk0", "bulk1", "single"]]
        bench.answer()
        assert single.answer.done()
        while not bulk.answer.done():
            bench.answer()
        assert await bulk.answer == b",".join(b"bulk%d" % number for number in range(9))


def test_the_oldest_request_is_always_sent() -> None:
    """A text that no batch has room for, or a stream of newcomers, would keep a request waiting for ever."""

    @played(max_batch_tokens=20, batches_ahead=0)
    async def _(bench: Bench) -> None:
        bench.ask("first")
        giant = bench.ask("g" * 100)
        bench.attach()
        for number in range(3):
            bench.ask(f"newcomer{number}")
        while not giant.answer.done():
            bench.ask("another newcomer")
            bench.answer()
            assert bench.answered < 30


def test_texts_of_one_length_class_share_a_batch_and_none_waits_for_ever() -> None:
    """Short texts would be padded to long ones; or, sorted by length alone, a long one would never get its turn."""

    @played(padded=True, max_queries=4, batches_ahead=0)
    async def _(bench: Bench) -> None:
        bench.attach().ask("first")
        bench.ask("a", "b" * 40, "c")
        bench.ask("d"), bench.ask("e" * 50), bench.ask("f")
        bench.answer()
        assert bench.texts()[1:] == [["d", "f", "a"]]
        bench.ask("newcomer")
        bench.answer()
        assert bench.texts()[2:] == [["e" * 50, "b" * 40]]
        bench.answer()
        assert bench.texts()[3:] == [["newcomer", "c"]]


def test_the_shorter_deadline_of_client_and_service_counts() -> None:
    """An engine would work for a client that said how soon the answer is of no use; or wait longer than it may."""

    @played(deadline_seconds=0.02)
    async def _(bench: Bench) -> None:
        for wish, most in ((0.001, "0.001"), (60.0, "0.02")):
            request = bench.batcher.admit(Query.create(["late"], 10), wish)
            with pytest.raises(Refusal, match=f"within {most} s"):
                await request.answer


def test_another_bundle_answers_whole_requests() -> None:
    """The requests of a faulty bundle would be lost with it, or two bundles would share one answer."""

    @played(max_queries=4, max_batch_queries=2, max_slice_queries=2, batches_ahead=1)
    async def _(bench: Bench) -> None:
        whole, single = bench.attach().ask("a", "b", "c", "d"), bench.ask("e")
        bench.answer()
        other = Bench(max_queries=4)
        other.batcher.bundle = "other"
        bench.batcher.drain_to(other.batcher)
        assert (bench.batcher.unfinished, bench.batcher.waiting_queries, bench.batcher.waiting_tokens) == (0, 0, 0)
        bench.answer()  # the engine that was given up still has it
        bench.batcher.on_engine_death()
        assert not whole.answer.done()
        other.attach().answer()
        assert other.texts() == [["a", "b", "c", "d", "e"]]
        assert (await whole.answer, whole.bundle) == (b"a,b,c,d", "other")
        assert (await single.answer, other.batcher.unfinished) == (b"e", 0)


def test_a_replacement_gets_the_requests_of_the_dead_engine() -> None:
    """An engine's death would otherwise be an error for every client it was working for."""

    @played(batches_ahead=1, max_batch_queries=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        requests = [bench.ask(text) for text in "abc"]
        bench.batcher.on_engine_death()
        assert bench.batcher.waiting_queries == 3
        bench.attach()
        bench.answered = 2  # the numbers of the two lost batches are not used again
        for _ in range(3):
            bench.answer()
        assert [await request.answer for request in requests] == [b"a", b"b", b"c"]


def test_a_request_present_at_two_deaths_is_refused_and_its_neighbours_are_not() -> None:
    """One request that crashes engines would be replayed forever, or fail all requests in its batch."""

    @played(batches_ahead=0, max_batch_queries=3)
    async def _(bench: Bench) -> None:
        poison, neighbour, later = bench.ask("poison"), bench.ask("neighbour"), bench.ask("later")
        bench.attach()
        assert bench.texts()[-1] == ["poison", "neighbour", "later"]
        bench.batcher.on_engine_death()
        bench.attach()
        assert bench.texts()[-1] == ["poison"]
        bench.batcher.on_engine_death()
        refusal = poison.answer.exception()
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (422, "quarantined")
        bench.attach()
        bench.answered = 2
        bench.answer(), bench.answer()
        assert [await neighbour.answer, await later.answer] == [b"neighbour", b"later"]


def test_waiting_in_the_pipe_is_waiting_in_the_queue() -> None:
    """The time that a batch sent ahead waits for its engine would be in no stage."""
    clock = Clock()

    @played(clock=clock, batches_ahead=1, max_batch_queries=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        first, ahead = bench.ask("first"), bench.ask("ahead")
        clock.now += 2
        stages = Stages(0.0, 0.0, 0.0, 0.0, 0.5, 0, 0)
        for number, request in ((1, first), (2, ahead)):
            bench.batcher.on_answers(BatchAnswers(number, stages, [QueryAnswer(Outcome.ANSWERED, b"")]))
            assert request.begun - request.arrived == 1.5


def test_worker_threads_answer_in_any_order() -> None:
    """The second of two threads would wait for the first, or its answers would count as an error of the engine."""

    @played(worker_threads=2, max_batch_queries=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        requests = [bench.ask(text) for text in "abcd"]
        assert bench.texts() == [["a"], ["b"], ["c"]]  # one per worker thread, one ahead
        with pytest.raises(ValueError, match="answered batch 3; expected 1 or 2"):
            bench.batcher.on_answers(BatchAnswers(3, NO_TIME, [QueryAnswer(Outcome.ANSWERED, b"c")]))
        for number, text in ((2, b"b"), (3, b"c"), (1, b"a"), (4, b"d")):
            bench.batcher.on_answers(BatchAnswers(number, NO_TIME, [QueryAnswer(Outcome.ANSWERED, text)]))
            assert bench.batcher.oldest() == {2: 1, 3: 1, 1: 4, 4: None}[number]
        assert [await request.answer for request in requests] == [b"a", b"b", b"c", b"d"]


def test_a_replacement_may_have_more_worker_threads() -> None:
    """A container with a second core would lose every engine because answers arrive in another order."""

    @played(worker_threads=1, max_batch_queries=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        requests = [bench.ask(text) for text in "ab"]
        bench.batcher.on_engine_death()
        bench.worker_threads = 2
        bench.attach()
        assert bench.texts()[2:] == [["a"]]
        bench.batcher.on_answers(BatchAnswers(3, NO_TIME, [QueryAnswer(Outcome.ANSWERED, b"a")]))
        requests += [bench.ask(text) for text in "cd"]
        for number, text in ((5, b"c"), (4, b"b"), (6, b"d")):
            bench.batcher.on_answers(BatchAnswers(number, NO_TIME, [QueryAnswer(Outcome.ANSWERED, text)]))
        assert [await request.answer for request in requests] == [b"a", b"b", b"c", b"d"]


def test_a_request_that_was_never_answered_has_waited() -> None:
    """The timing of the 504 would show no waiting time, although the request only waited."""
    clock = Clock()

    @played(clock=clock)
    async def _(bench: Bench) -> None:
        request = bench.attach().ask("late")
        clock.now += 2
        bench.batcher.on_deadline(request)
        with pytest.raises(Refusal):
            await request.answer
        assert request.begun - request.arrived == 2


def test_every_worker_thread_is_suspected_and_then_each_request_separately() -> None:
    """A request that kills engines would fail requests that another thread answered at the time."""

    @played(worker_threads=2, max_batch_queries=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        neighbour, poison, behind = bench.ask("neighbour"), bench.ask("poison"), bench.ask("behind")
        bench.batcher.on_engine_death()
        assert [request.deaths for request in (neighbour, poison, behind)] == [1, 1, 0]
        bench.attach()
        assert bench.texts()[3:] == [["neighbour"]]
        bench.answered = 3
        bench.answer()
        assert bench.texts()[4:] == [["poison"]]
        bench.batcher.on_engine_death()
        bench.attach().ask("later")
        assert bench.texts()[5:] == [["behind"], ["later"]]
        assert await neighbour.answer == b"neighbour"
        assert isinstance(poison.answer.exception(), Refusal)
        assert behind.deaths == 0


def test_only_the_oldest_batch_is_suspected() -> None:
    """A batch that was still in the pipe, and cannot have killed the engine, would lose its one replay."""

    @played(batches_ahead=1, max_batch_queries=1)
    async def _(bench: Bench) -> None:
        bench.attach()
        first, second = bench.ask("first"), bench.ask("second")
        bench.batcher.on_engine_death()
        assert (first.deaths, second.deaths) == (1, 0)


def test_an_unexpected_answer_is_an_error() -> None:
    """Answers matched to the wrong batch would hand one client the results of another."""

    @played()
    async def _(bench: Bench) -> None:
        bench.attach().ask("a")
        with pytest.raises(ValueError, match="answered batch 7; expected 1"):
            bench.batcher.on_answers(BatchAnswers(7, NO_TIME, [QueryAnswer(Outcome.ANSWERED, b"a")]))


@pytest.mark.parametrize(("outcome", "status"), [(Outcome.REFUSED, 422), (Outcome.BROKEN, 500)])
def test_a_failed_query_is_a_refusal(outcome: Outcome, status: int) -> None:
    """A query that the engine cannot answer would reach the client as broken JSON in a 200."""

    @played()
    async def _(bench: Bench) -> None:
        request = bench.attach().ask("a")
        bench.answer(outcome)
        with pytest.raises(Refusal) as refused:
            await request.answer
        assert refused.value.status == status
