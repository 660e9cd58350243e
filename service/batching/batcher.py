"""Bounded admission and work-conserving batches.

There is no delay timer: an idle engine gets the waiting texts immediately, and the next batch forms while it works.
Callers take turns by cost (fair_queue.py), and batches are bounded in texts, tokens and hits, so no caller
occupies the engine for long. When the queue is full, a caller below its share is admitted, and the newest request of
the caller with the most places is refused. A request leaves the queue as soon as it is answered, late or abandoned.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import chain, islice
from time import perf_counter

from service import errors
from service.access.callers import ANYONE, Caller
from service.batching.fair_queue import FairQueue
from service.batching.pending_request import Lengths, PendingRequest, RequestSlice, length_class
from service.batching.quarantine import Quarantine
from service.batching.queue_limits import QueueLimits
from service.engine.protocol import BatchAnswers, Outcome, Query, Stages, encode_batch
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.settings import Settings

Ticket = PendingRequest  # as other modules call it
DEATHS_ALLOWED = 1
OVER_LIMIT = 2  # times the limit of the queue, for callers below their share
MIXED_SECONDS = 1.0  # after a small request, during which large ones leave room
MIXED_PART = 4  # 1/4 of a batch is for large requests while small ones arrive
LARGE_PART = 8  # a request whose next slice costs more than 1/8 of a batch is large
SMOOTHING = 0.05  # weight of the last batch in the moving average of the engine's speed
GRAINS = 16  # 1/16 of a batch: requests with smaller cost differences keep their order
SCAN_LIMIT = 256  # requests that are searched for texts of one length class


class Batcher:
    """The unfinished requests of one generation: waiting and in flight."""

    def __init__(self, bundle: str, settings: Settings, metrics: Metrics, lengths: Lengths) -> None:
        self.bundle = bundle
        self.lengths = lengths
        self.slice_texts = settings.max_piece_queries
        self.unfinished = 0
        self._lanes = 1  # parallel batches of the engine
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        places = settings.max_waiting_tokens / settings.max_waiting_queries
        grain = settings.max_batch_hits // GRAINS
        self._waiting = FairQueue(places, grain)
        self._limits = QueueLimits(self._waiting, settings)
        self._in_flight: OrderedDict[int, list[RequestSlice]] = OrderedDict()  # batch number → slices, the oldest first
        self._send: Callable[[bytes], None] | None = None
        self._number = 0  # of the last batch sent
        self._idle = asyncio.Event()
        self._idle.set()
        self._large = settings.max_batch_hits // LARGE_PART
        self._half_batch = settings.max_batch_queries // 2
        self._small_at = -MIXED_SECONDS  # time of the last small request
        self._cost_per_second = 0.0  # throughput in batches without filters
        self._quarantine = Quarantine()
        self._blamed: set[Caller] = set()  # callers with a quarantined text since the last answered batch

    @property
    def oldest(self) -> int | None:
        """Number of the oldest batch in flight; None when there is none."""
        return next(iter(self._in_flight), None)

    @property
    def waiting_queries(self) -> int:
        """Number of waiting texts."""
        return self._waiting.texts

    @property
    def waiting_tokens(self) -> int:
        """Number of waiting tokens."""
        return self._waiting.tokens

    def admit(self, asked: Query, seconds: float | None = None, caller: Caller = ANYONE) -> PendingRequest:
        """Queue a request; send it immediately when the engine has room. Raises Refusal 422 or 429."""
        if self._quarantine:
            self._refuse_quarantined(asked)
        tokens = [self.lengths.tokens(query) for query in asked.texts]
        self._make_room(len(tokens), sum(tokens), len(tokens) * asked.k, caller)
        deadline = self._settings.deadline_seconds
        seconds = min(seconds, deadline) if seconds else deadline
        request = PendingRequest(asked, tokens, seconds, self, self._loop, caller)
        if not self._is_large(request):
            self._small_at = request.arrived
        self._queue(request)
        self._feed()
        return request

    def hand_over(self) -> list[PendingRequest]:
        """Remove and return all unfinished requests, in order."""
        flying = [one.request for batch in self._in_flight.values() for one in batch if self._mine(one)]
        requests = list(dict.fromkeys([*flying, *self._waiting.all()]))
        for request in requests:
            self._forget(request)
        return requests

    def take_over(self, requests: Iterable[PendingRequest]) -> None:
        """Adopt another bundle's requests and answer them from the beginning: no answer mixes two bundles."""
        for request in requests:
            request.begin(self, [self.lengths.tokens(query) for query in request.asked.texts])
            self._queue(request)
        self._limits.lose_pace()
        self._feed()

    def abandon(self, request: PendingRequest) -> None:
        """Drop a request whose client disconnected or whose handler was cancelled."""
        if not request.settled:
            self._metrics.rejections.labels("abandoned").inc()
            self._finish(request, Refusal(499, "abandoned", "The client closed the connection."))

    def too_late(self, request: PendingRequest) -> None:
        """Refuse a request whose deadline has passed."""
        by_client = request.seconds < self._settings.deadline_seconds
        refusal = errors.too_late(request.seconds, by_client)
        self._metrics.rejections.labels(refusal.code).inc()
        self._finish(request, refusal)

    def attach(self, send: Callable[[bytes], None], lanes: int) -> None:
        """Attach a ready engine with `lanes` lanes and send it the waiting texts."""
        self._send, self._lanes = send, lanes
        self._feed()

    def lost(self) -> bool:
        """Put the batches of a dead engine back at the head of the queue. Return whether a query caused the death.

        Only the oldest batch of each lane can be the cause, because a lane reads its next batch after answering the
        last one. Their requests are then sent alone, one text at a time. A text that was in flight at a second death is
        quarantined. If texts of several callers were quarantined since the last answered batch, the bundle is the
        cause; a single caller could choose its texts so that the service falls back to another bundle.
        """
        self._send = None
        self._limits.lose_pace()
        if not self._in_flight:
            return False
        worked_on = chain.from_iterable(islice(self._in_flight.values(), self._lanes))
        suspects = {one.request: one for one in worked_on if self._mine(one)}
        for batch in reversed(self._in_flight.values()):
            for one in reversed(batch):
                self._put_back(one)
        self._in_flight.clear()
        excused = False
        for request, one in suspects.items():
            request.deaths += 1
            if request.deaths > DEATHS_ALLOWED:
                self._blame(one)
                excused = len(self._blamed) == 1
        return excused

    def answered(self, answers: BatchAnswers) -> None:
        """Deliver the answers of a batch to its requests. Raises ValueError for a batch that is not due."""
        due = list(islice(self._in_flight, self._lanes))
        if answers.number not in due or len(answers.answers) != len(self._in_flight[answers.number]):
            raise ValueError(f"the engine answered batch {answers.number} where {_either(due)} was due")
        batch = self._in_flight.pop(answers.number)
        self._blamed.clear()
        self._feed()  # first, so that the engine works while the answers are sent
        texts = sum(one.stop - one.start for one in batch)
        self._metrics.batch(texts, answers.stages)
        self._charge_filters(batch, answers.stages.total)
        size, hits = sum(len(body) for _, body in answers.answers), sum(one.hits for one in batch)
        self._limits.measured(size, hits)
        now = perf_counter()
        self._limits.answered(texts, now)
        for one, (outcome, body) in zip(batch, answers.answers, strict=True):
            if self._mine(one):
                one.request.begun = now - answers.stages.total  # excludes the wait in the pipe
                self._deliver(one, outcome, body, answers.stages)

    async def drained(self) -> None:
        """Wait until all admitted requests are answered; their deadlines bound the wait."""
        await self._idle.wait()

    def give_up(self, why: Refusal) -> None:
        """Refuse every unfinished request with `why`."""
        for request in self.hand_over():
            self._settle(request, why)

    def take(self) -> list[RequestSlice]:
        """Return the next batch: a slice of each request in turn until it is full. Empty when nothing waits."""
        first = self._waiting.first()
        if first is None:
            return []
        length = length_class(first.tokens[first.todo[0][0]]) if self.lengths.padded else None
        batch: list[RequestSlice] = []
        settings = self._settings
        queries, tokens, hits = settings.max_batch_queries, settings.max_batch_tokens, settings.max_batch_hits
        large = self._is_large(first)
        if large and self._mixed():
            hits //= MIXED_PART
        with closing(self._waiting.in_turn(SCAN_LIMIT)) as turns:
            for request in turns:
                if batch and (request.deaths or self._is_large(request) != large):
                    break  # small and large requests are not mixed in one batch
                start, stop = self._cut(request, min(queries, hits // request.asked.k), tokens, length, not batch)
                if start == stop and length is None:
                    break
                if start == stop:
                    continue
                batch.append(RequestSlice(request, start, stop))
                tokens -= self._waiting.given(request, start, stop)
                queries -= stop - start
                hits -= (stop - start) * request.asked.k
                if request.deaths or not queries:
                    break
        return batch

    def _cut(
        self, request: PendingRequest, texts: int, tokens: int, length: int | None, first: bool
    ) -> tuple[int, int]:
        """Cut a request's next span; the first text of a batch always fits."""
        most = 1 if request.deaths else self.slice_texts
        start, stop = request.cut(min(texts, most), tokens, length)
        if start == stop and first:
            return request.cut(1, request.tokens[start])  # a text larger than a batch is sent alone
        return start, stop

    def _feed(self) -> None:
        while self._send and self._may_send() and (batch := self.take()):
            self._number += 1
            self._in_flight[self._number] = batch
            self._send(encode_batch(self._number, [one.asked() for one in batch]))

    def _may_send(self) -> bool:
        """Return whether the engine has room for a batch.

        A suspect is answered with nothing else there to be blamed. A batch is sent ahead when it is half full or as
        large as the one before it, or the engine would spend its time on batches of one text.
        """
        if not self._in_flight:
            return True
        if len(self._in_flight) >= self._lanes + self._settings.batches_ahead:
            return False
        following, flying = self._waiting.first(), next(reversed(self._in_flight.values()))
        if following is None or following.deaths or flying[0].request.deaths:
            return False
        if len(self._in_flight) < self._lanes:
            return True
        if self._waiting.texts < min(sum(one.stop - one.start for one in flying), self._half_batch):
            return False  # more will have come when the engine is free
        # a large batch sent ahead would delay small requests that arrive later
        return not (self._is_large(following) and self._mixed())

    def _is_large(self, request: PendingRequest) -> bool:
        return request.next_cost > self._large

    def _mixed(self) -> bool:
        """Return whether small requests arrived recently, so that large ones must leave room."""
        return perf_counter() - self._small_at < MIXED_SECONDS

    def _charge_filters(self, batch: Sequence[RequestSlice], seconds: float) -> None:
        """Charge callers for batches that took longer because of their filters, which no estimate covers."""
        cost = sum(one.request.cost(one.start, one.stop) for one in batch)
        filtered = [one.request.caller for one in batch if one.request.asked.filter_json]
        if not filtered:
            rate = cost / max(seconds, 1e-6)
            self._cost_per_second += (rate - self._cost_per_second) * (SMOOTHING if self._cost_per_second else 1)
        elif (excess := seconds * self._cost_per_second - cost) > 0:
            for caller in filtered:
                self._waiting.surcharge(caller, excess / len(filtered))

    def _deliver(self, one: RequestSlice, outcome: Outcome, body: bytes, stages: Stages) -> None:
        request, most = one.request, self._settings.max_answer_bytes
        request.answer_bytes += len(body)
        self._limits.received(request)
        if outcome is Outcome.TOO_LARGE or request.answer_bytes > most:
            self._finish(request, errors.answer_too_large(most))
        elif outcome is Outcome.POSTPONED:
            self._put_back(one)
            self._feed()
        elif outcome is Outcome.REFUSED:
            self._finish(request, Refusal(422, "bad_query", body.decode()))
        elif outcome is Outcome.BROKEN:
            self._finish(request, errors.broken())
        else:
            request.parts[one.start] = body
            request.missing -= one.stop - one.start
            request.stages = stages
            if not request.missing:
                self._finish(request, None)

    def _finish(self, request: PendingRequest, refusal: Refusal | None) -> None:
        if not request.settled:
            self._forget(request)
            self._settle(request, refusal)

    @staticmethod
    def _settle(request: PendingRequest, refusal: Refusal | None) -> None:
        request.settled = True
        request.timer.cancel()
        if refusal and request.stages is None:
            request.begun = perf_counter()  # all that it did was wait
        if request.answer.done():
            return  # cancelled
        if refusal:
            request.answer.set_exception(refusal)
        else:
            request.answer.set_result(b",".join(part for part in request.parts if part is not None))
            request.parts.clear()

    def _queue(self, request: PendingRequest) -> None:
        self.unfinished += 1
        self._limits.begin(request)
        self._idle.clear()
        self._waiting.add(request)

    def _forget(self, request: PendingRequest) -> None:
        self._waiting.remove(request)
        self.unfinished -= 1
        self._limits.end(request)
        if not self.unfinished:
            self._idle.set()

    def _mine(self, one: RequestSlice) -> bool:
        """Return whether the request of a slice is unfinished and belongs to this batcher."""
        return one.request.batcher is self and not one.request.settled

    def _put_back(self, one: RequestSlice) -> None:
        if self._mine(one):
            self._waiting.add_first(one.request, one.start, one.stop)

    def _blame(self, one: RequestSlice) -> None:
        """Quarantine a text that was in flight when two engines died."""
        texts = one.asked().texts
        self._blamed.add(one.request.caller)
        self._quarantine.add(one.request.asked, texts)
        self._metrics.quarantined.inc()
        self._finish(one.request, errors.quarantined(texts[0]))

    @property
    def full(self) -> bool:
        """Whether the queue is full."""
        return self._limits.full

    def turns_away(self, caller: Caller) -> bool:
        """Return whether the queue is full and the caller has used its share of it."""
        return self._limits.full and not self._limits.leaves_share(caller, 1)

    def refuse_early(self, caller: Caller, texts: int) -> None:
        """Check the queue for a request of at least `texts` texts. Raises Refusal 429."""
        if (waiting := self._limits.exceeded(texts)) and not self._limits.leaves_share(caller, texts):
            self._metrics.rejections.labels("queue_full").inc()
            raise errors.overloaded(waiting)

    def _make_room(self, texts: int, tokens: int, hits: int, caller: Caller) -> None:
        """Make room in the queue for a request of a caller. Raises Refusal 429.

        A caller below its share may exceed the limits, so that admitted requests are not refused for it. Only at twice
        the limits, the newest request of the caller with the most places is refused.
        """
        if not (waiting := self._limits.exceeded(texts, tokens, hits)):
            return
        under_share = self._limits.leaves_share(caller, self._waiting.places(texts, tokens))
        while not under_share or (waiting := self._limits.exceeded(texts, tokens, hits, OVER_LIMIT)):
            refusal = errors.overloaded(waiting)
            self._metrics.rejections.labels("queue_full").inc()
            heaviest = self._waiting.heaviest() if under_share else None
            if heaviest is None or heaviest.newest is None or heaviest.caller == caller:
                raise refusal
            self._finish(heaviest.newest, refusal)

    def _refuse_quarantined(self, asked: Query) -> None:
        try:
            self._quarantine.check(asked)
        except Refusal:
            self._metrics.rejections.labels("quarantined").inc()
            raise


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers)) or "none"
