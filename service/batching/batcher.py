"""Bounded admission and work-conserving batches.

There is no delay timer: an idle engine gets the waiting texts immediately, and the next batch forms while it works.
Callers take turns by cost (fair_queue.py), and batches are bounded in texts, tokens and hits, so no caller
occupies the engine for long. When the queue is full, a caller below its share is admitted, and the newest request of
the caller with the most places is refused. A request leaves the queue as soon as it is answered, late or abandoned.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from time import perf_counter

from service import errors
from service.access.callers import ANYONE, Caller
from service.batching.batch_builder import BatchBuilder
from service.batching.fair_queue import FairQueue
from service.batching.filter_charges import FilterCharges
from service.batching.lane import Lane, count_texts
from service.batching.pending_request import PendingRequest, RequestSlice
from service.batching.quarantine import Quarantine
from service.batching.queue_limits import QueueLimits
from service.batching.token_estimator import TokenEstimator
from service.engine.protocol import BatchAnswers, Outcome, Query, Stages, encode_batch
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.settings import Settings

DEATHS_ALLOWED = 1
OVER_LIMIT = 2  # times the limit of the queue, for callers below their share
GRAINS = 16  # 1/16 of a batch: requests with smaller cost differences keep their order


class Batcher:
    """The unfinished requests of one generation: waiting, and in flight at its engines.

    Each engine has a lane; the number of a lane stays the same when its engine is replaced.
    """

    def __init__(
        self,
        bundle: str,
        settings: Settings,
        metrics: Metrics,
        estimator: TokenEstimator,
        clock: Callable[[], float] = perf_counter,  # the loop's clock may have millisecond resolution
        query_identity: int = 0,
    ) -> None:
        self.bundle = bundle
        self.estimator = estimator
        self.slice_texts = settings.max_slice_queries
        self.unfinished = 0
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        places = settings.max_waiting_tokens / settings.max_waiting_queries
        self._waiting = FairQueue(places, settings.max_batch_hits // GRAINS)
        self._limits = QueueLimits(self._waiting, settings)
        self._builder = BatchBuilder(self._waiting, settings, estimator.padded)
        self._filter_charges = FilterCharges(self._waiting)
        self._lanes: dict[int, Lane] = {}
        self._number = 0  # of the last batch sent
        self._idle = asyncio.Event()
        self._idle.set()
        self._half_batch = settings.max_batch_queries // 2
        self._quarantine = Quarantine(query_identity)
        self._blamed: set[Caller] = set()  # callers with a quarantined text since the last answered batch

    def oldest(self, lane: int = 0) -> int | None:
        """Return the number of the oldest batch in flight at an engine; None when there is none."""
        return self._lanes[lane].oldest if lane in self._lanes else None

    @property
    def waiting_queries(self) -> int:
        """Number of waiting texts."""
        return self._waiting.texts

    @property
    def waiting_tokens(self) -> int:
        """Number of waiting tokens."""
        return self._waiting.tokens

    @property
    def full(self) -> bool:
        """Whether the queue is full."""
        return self._limits.full

    def turns_away(self, caller: Caller) -> bool:
        """Return whether the queue is full and the caller has used its share of it."""
        return self._limits.full and not self._limits.is_within_share(caller, 1)

    def refuse_early(self, caller: Caller, texts: int) -> None:
        """Check the queue for a request of at least `texts` texts. Raises Refusal 429."""
        if (waiting := self._limits.exceeded(texts)) and not self._limits.is_within_share(caller, texts):
            self._metrics.rejections.labels("queue_full").inc()
            raise errors.overloaded(waiting)

    def admit(self, query: Query, seconds: float | None = None, caller: Caller = ANYONE) -> PendingRequest:
        """Queue a request; send it immediately when the engine has room. Raises Refusal 422 or 429."""
        if self._quarantine:
            self._refuse_quarantined(query)
        tokens = self.estimator.estimate(query.texts)
        self._make_room(len(tokens), sum(tokens), len(tokens) * query.k, caller)
        deadline = self._settings.deadline_seconds
        seconds = min(seconds, deadline) if seconds else deadline
        request = PendingRequest(query, tokens, seconds, self, self._clock(), caller)
        self._builder.note_arrival(request)
        self._queue(request)
        self._feed()
        return request

    def drain_to(self, successor: "Batcher") -> None:
        """Move all unfinished requests, in order, to another bundle's batcher."""
        successor.adopt(self._remove_all())

    def adopt(self, requests: Iterable[PendingRequest]) -> None:
        """Answer another bundle's requests from the beginning: no answer mixes two bundles."""
        for request in requests:
            request.assign(self, self.estimator.estimate(request.texts))  # bundles differ in tokens per byte
            self._queue(request)
        self._limits.reset_throughput()
        self._feed()

    def abandon(self, request: PendingRequest) -> None:
        """Drop a request whose client disconnected or whose handler was cancelled."""
        if not request.settled:
            self._metrics.rejections.labels("abandoned").inc()
            self._finish(request, Refusal(499, "abandoned", "The client closed the connection."))

    def on_deadline(self, request: PendingRequest) -> None:
        """Refuse a request whose deadline has passed."""
        by_client = request.seconds < self._settings.deadline_seconds
        refusal = errors.too_late(request.seconds, by_client)
        self._metrics.rejections.labels(refusal.code).inc()
        self._finish(request, refusal)

    def attach(self, send: Callable[[bytes], None], worker_threads: int, lane: int = 0) -> None:
        """Attach a ready engine with this number of worker threads and send it the waiting texts."""
        engine = self._lanes.setdefault(lane, Lane())
        engine.send, engine.worker_threads = send, worker_threads
        self._feed()

    def on_engine_death(self, lane: int = 0) -> bool:
        """Put the batches of a dead engine back at the head of the queue. Return whether a query caused the death.

        Only the oldest batch of each worker thread can be the cause, because a thread reads its next batch after
        answering the last one. Their requests are then sent alone, one text at a time. A text that was in flight at a
        second death is quarantined. If texts of several callers were quarantined since the last answered batch, the
        bundle is the cause; a single caller could choose its texts so that the service falls back to another bundle.
        """
        engine = self._lanes.setdefault(lane, Lane())
        engine.send = None
        self._limits.reset_throughput()
        if not engine.in_flight:
            return False
        suspects = {request: span for request, span in engine.in_progress().items() if self._is_pending_here(span)}
        for batch in reversed(engine.in_flight.values()):
            for span in reversed(batch):
                self._put_back(span)
        engine.clear()
        query_is_cause = False
        for request, span in suspects.items():
            request.deaths += 1
            if request.deaths > DEATHS_ALLOWED:
                self._blame(span)
                query_is_cause = len(self._blamed) == 1
        self._feed()  # other engines answer them
        return query_is_cause

    def on_answers(self, answers: BatchAnswers, lane: int = 0) -> None:
        """Deliver the answers of a batch to its requests. Raises ValueError for a batch that is not due."""
        batch = self._lanes[lane].take(answers.number, len(answers.answers))
        self._blamed.clear()
        self._feed()  # first, so that the engine works while the answers are sent
        now = self._clock()
        self._measure(batch, answers, now)
        for span, (outcome, body) in zip(batch, answers.answers, strict=True):
            if self._is_pending_here(span):
                span.request.begun = now - answers.stages.total  # excludes the wait in the pipe
                self._deliver(span, outcome, body, answers.stages)

    async def drained(self) -> None:
        """Wait until all admitted requests are answered; their deadlines bound the wait."""
        await self._idle.wait()

    def refuse_all(self, refusal: Refusal) -> None:
        """Refuse every unfinished request."""
        for request in self._remove_all():
            self._settle(request, refusal)

    def _remove_all(self) -> list[PendingRequest]:
        """Remove and return all unfinished requests, in order."""
        batches = chain.from_iterable(lane.in_flight.values() for lane in self._lanes.values())
        in_flight = [span.request for batch in batches for span in batch if self._is_pending_here(span)]
        requests = list(dict.fromkeys([*in_flight, *self._waiting.all()]))
        for request in requests:
            self._remove(request)
        return requests

    def _feed(self) -> None:
        """Send batches while an engine has room, each to the one with the fewest texts in flight."""
        while (lane := self._free_lane()) and (batch := self._builder.next_batch(self._clock())):
            self._number += 1
            lane.add(self._number, batch)
            lane.send(encode_batch(self._number, [span.query() for span in batch]))  # type: ignore[misc]  # it is free

    def _free_lane(self) -> Lane | None:
        """Return the least loaded engine with room for a batch."""
        if not self._waiting.texts:
            return None
        free = [lane for lane in self._lanes.values() if lane.send and self._may_send(lane)]
        return min(free, key=lambda lane: (len(lane.in_flight), lane.texts), default=None)

    def _may_send(self, lane: Lane) -> bool:
        """Return whether an engine has room for a batch.

        A suspect is answered alone, so that no other request can be blamed. A batch is sent ahead when it is half full
        or as large as the one before it, or the engine would spend its time on batches of one text.
        """
        if not lane.in_flight:
            return True
        if len(lane.in_flight) >= lane.worker_threads + self._settings.batches_ahead:
            return False
        following, last_batch = self._waiting.first(), lane.last
        if following is None or following.deaths or last_batch[0].request.deaths:
            return False
        if len(lane.in_flight) < lane.worker_threads:
            return True
        if self._waiting.texts < min(count_texts(last_batch), self._half_batch):
            return False  # more will have come when the engine is free
        # a large batch sent ahead would delay small requests that arrive later
        return not (self._builder.is_large(following) and self._builder.small_arrived_recently(self._clock()))

    def _measure(self, batch: Sequence[RequestSlice], answers: BatchAnswers, now: float) -> None:
        """Update metrics and estimates from the answers of a batch."""
        stages = answers.stages
        texts, hits = count_texts(batch), sum(span.hits for span in batch)
        self._metrics.observe_batch(texts, stages[:4], stages.tokens, stages.padding, stages.full_scans)
        self._filter_charges.charge(batch, stages.total)
        self._limits.update_bytes_per_hit(sum(len(body) for _, body in answers.answers), hits)
        self._limits.update_throughput(texts, now)

    def _deliver(self, span: RequestSlice, outcome: Outcome, body: bytes, stages: Stages) -> None:
        request, limit = span.request, self._settings.max_answer_bytes
        request.answer_bytes += len(body)
        self._limits.count_received(request)
        if outcome is Outcome.TOO_LARGE or request.answer_bytes > limit:
            self._finish(request, errors.answer_too_large(limit))
        elif outcome is Outcome.POSTPONED:
            self._put_back(span)
            self._feed()
        elif outcome is Outcome.REFUSED:
            self._finish(request, Refusal(422, "bad_query", body.decode()))
        elif outcome is Outcome.UNAVAILABLE:
            self._finish(request, errors.index_unavailable(self.bundle))
        elif outcome is Outcome.BROKEN:
            self._finish(request, errors.broken())
        else:
            request.parts[span.start] = body
            request.missing -= span.stop - span.start
            request.stages = stages
            if not request.missing:
                self._finish(request, None)

    def _finish(self, request: PendingRequest, refusal: Refusal | None) -> None:
        if not request.settled:
            self._remove(request)
            self._settle(request, refusal)

    def _settle(self, request: PendingRequest, refusal: Refusal | None) -> None:
        request.settled = True
        request.timer.cancel()
        if refusal and request.stages is None:
            request.begun = self._clock()  # the request only waited
        if request.answer.done():
            return  # cancelled
        if refusal:
            request.answer.set_exception(refusal)
        else:
            request.answer.set_result(b",".join(part for part in request.parts if part is not None))
            request.parts.clear()

    def _queue(self, request: PendingRequest) -> None:
        self.unfinished += 1
        self._limits.add_answer(request)
        self._idle.clear()
        self._waiting.add(request)

    def _remove(self, request: PendingRequest) -> None:
        self._waiting.remove(request)
        self.unfinished -= 1
        self._limits.remove_answer(request)
        if not self.unfinished:
            self._idle.set()

    def _is_pending_here(self, span: RequestSlice) -> bool:
        """Return whether the request of a slice is unfinished and belongs to this batcher."""
        return span.request.batcher is self and not span.request.settled

    def _put_back(self, span: RequestSlice) -> None:
        if self._is_pending_here(span):
            self._waiting.add_first(span.request, span.start, span.stop)

    def _blame(self, span: RequestSlice) -> None:
        """Quarantine a text that was in flight when two engines died."""
        texts = span.query().texts
        self._blamed.add(span.request.caller)
        self._quarantine.add(span.request.query, texts)
        self._metrics.quarantined.inc()
        self._finish(span.request, errors.quarantined(texts[0]))

    def _refuse_quarantined(self, query: Query) -> None:
        try:
            self._quarantine.check(query)
        except Refusal:
            self._metrics.rejections.labels("quarantined").inc()
            raise

    def _make_room(self, texts: int, tokens: int, hits: int, caller: Caller) -> None:
        """Make room in the queue for a request of a caller. Raises Refusal 429.

        A caller below its share may exceed the limits, so that admitted requests are not refused for it. Only at twice
        the limits, the newest request of the caller with the most places is refused.
        """
        if not (waiting := self._limits.exceeded(texts, tokens, hits)):
            return
        under_share = self._limits.is_within_share(caller, self._waiting.places(texts, tokens))
        while not under_share or (waiting := self._limits.exceeded(texts, tokens, hits, OVER_LIMIT)):
            refusal = errors.overloaded(waiting)
            self._metrics.rejections.labels("queue_full").inc()
            heaviest = self._waiting.heaviest() if under_share else None
            if heaviest is None or heaviest.newest is None or heaviest.caller == caller:
                raise refusal
            self._finish(heaviest.newest, refusal)
