"""Fair queueing between callers, and between the requests of one caller.

Weighted fair queueing: every caller has a virtual time, which grows by the cost of its texts sent to the engine. The
next caller is the one with the least virtual time after its next slice, so small requests go before large ones. The
virtual time of the queue is the cost that each caller would have received under equal shares. A returning caller starts
there: it neither accumulates unused shares nor waits for what others used. The same rule orders the requests of one
caller.
"""

import heapq
from collections import OrderedDict
from collections.abc import Generator, Iterator
from itertools import count

from service.access.callers import Caller
from service.batching.pending_request import PendingRequest
from service.batching.virtual_times import MAX_OUTDATED, Entry, VirtualTimes


class CallerQueue:
    """The waiting requests of one caller and their size."""

    __slots__ = ("caller", "requests", "texts", "tokens")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.requests: VirtualTimes[PendingRequest] = VirtualTimes()
        self.texts = 0  # not sent to an engine
        self.tokens = 0

    @property
    def newest(self) -> PendingRequest | None:
        """The request that joined last; None when all waiting requests were put back."""
        return next(reversed(self.requests.times), None)


class FairQueue:
    """The requests that wait for an engine. Requests that a dead engine had go first.

    A text takes one place of the queue, plus one per `tokens_per_place` tokens.
    """

    def __init__(self, tokens_per_place: float, grain: int) -> None:
        """Costs that differ by less than a `grain` count as equal."""
        self._grain = max(grain, 1)
        self.texts = 0
        self.tokens = 0
        self._tokens_per_place = tokens_per_place
        self._callers: dict[Caller, CallerQueue] = {}
        self._turns: VirtualTimes[CallerQueue] = VirtualTimes()
        self._returned: OrderedDict[PendingRequest, None] = OrderedDict()
        # callers without waiting requests whose virtual time is ahead of the queue → that time
        self._ahead: dict[Caller, float] = {}
        # by places, the most first; filled by the first call of `heaviest` and kept until the queue is empty
        self._heaviest: list[tuple[float, int, CallerQueue]] = []
        self._numbers = count()
        self._last_sent: PendingRequest | None = None

    def __bool__(self) -> bool:
        return bool(self._returned or self._turns)

    @property
    def callers(self) -> int:
        """Number of callers with waiting texts."""
        return len(self._callers)

    def places(self, texts: int, tokens: int) -> float:
        """Return the places that some texts take."""
        return texts + tokens / self._tokens_per_place

    def places_of(self, caller: Caller) -> float:
        """Return the places that a caller has."""
        queue = self._callers.get(caller)
        return self.places(queue.texts, queue.tokens) if queue else 0.0

    def add(self, request: PendingRequest) -> None:
        """Add a request."""
        queue = self._count_in(request, 0, len(request.tokens))
        is_new = not queue.requests.times
        next_cost = self._next_cost(request)
        queue.requests.join(request, next_cost)
        if is_new:
            self._turns.join(queue, next_cost, self._ahead.pop(request.caller, 0.0) if self._ahead else 0.0)
        elif queue.requests.first() is request:
            self._turns.set_next_cost(queue, next_cost)

    def add_first(self, request: PendingRequest, start: int, stop: int) -> None:
        """Put texts back that an engine had, before all others."""
        request.put_back(start, stop)
        self._count_in(request, start, stop)
        self._leave(request)
        self._returned[request] = None
        self._returned.move_to_end(request, last=False)

    def remove(self, request: PendingRequest) -> None:
        """Remove a request."""
        if not request.todo:  # an engine has all of it
            return
        self._returned.pop(request, None)
        self._leave(request)
        for start, stop in request.todo:
            self._count_out(request, start, stop)
        request.todo.clear()

    def first(self) -> PendingRequest | None:
        """Return the next request; None when the queue is empty."""
        if self._returned:
            return next(iter(self._returned))
        queue = self._turns.first()
        return queue.requests.first() if queue else None

    def in_order(self, max_skipped: int) -> Generator[PendingRequest]:
        """Yield requests in order. Requests that the consumer does not pass to `mark_sent` are skipped until the end.

        At most `max_skipped` requests are skipped. Close the iterator before any other call.
        """
        skipped: set[PendingRequest] = set()
        to_restore: list[tuple[VirtualTimes[PendingRequest], Entry[PendingRequest]]] = []
        callers_to_restore: list[Entry[CallerQueue]] = []
        try:
            while len(skipped) < max_skipped:
                request = (
                    next((request for request in self._returned if request not in skipped), None)
                    if self._returned
                    else None
                )
                queue = None if request else self._turns.first()
                if queue:
                    request = queue.requests.first()
                    if request is None:  # all requests of this caller are skipped
                        callers_to_restore.append(self._turns.skip())
                        continue
                if request is None:
                    return
                self._last_sent = None
                yield request
                if self._last_sent is not request:
                    skipped.add(request)
                    if queue:
                        to_restore.append((queue.requests, queue.requests.skip()))
        finally:
            for requests, entry in to_restore:
                requests.restore(entry)
            for caller in callers_to_restore:
                self._turns.restore(caller)

    def mark_sent(self, request: PendingRequest, start: int, stop: int) -> int:
        """Charge the span of a request that is sent to the engine; return its tokens."""
        self._last_sent = request
        if request in self._returned:
            if not request.todo:
                del self._returned[request]
            return self._count_out(request, start, stop)
        queue, cost = self._callers[request.caller], request.cost(start, stop)
        queue.requests.charge(request, cost)
        self._turns.charge(queue, cost)
        if request.todo:
            queue.requests.set_next_cost(request, self._next_cost(request))
        else:
            queue.requests.leave(request)
        self._place(queue)
        return self._count_out(request, start, stop)

    def surcharge(self, caller: Caller, cost: float) -> None:
        """Charge a caller for cost beyond the estimate."""
        queue = self._callers.get(caller)
        if queue and queue.requests:
            self._turns.times[queue] += cost
            self._place(queue)
        elif self._turns:
            self._ahead[caller] = max(self._ahead.get(caller, 0.0), self._turns.now) + cost

    def all(self) -> Iterator[PendingRequest]:
        """Yield every request: those put back first, then by caller."""
        yield from self._returned
        for queue in self._turns.times:
            yield from queue.requests.times

    def heaviest(self) -> CallerQueue | None:
        """Return the caller with the most places."""
        if not self._heaviest:
            self._rank_callers()
        heap = self._heaviest
        while heap:
            recorded, _, queue = heap[0]
            places = self.places(queue.texts, queue.tokens)
            if -recorded == places and queue.texts:
                return queue
            if queue.texts:  # it has fewer places than when it was recorded
                heapq.heapreplace(heap, (-places, next(self._numbers), queue))
            else:
                heapq.heappop(heap)
        return None

    def _rank_callers(self) -> None:
        self._heaviest = [
            (-self.places(queue.texts, queue.tokens), next(self._numbers), queue) for queue in self._callers.values()
        ]
        heapq.heapify(self._heaviest)

    def _count_in(self, request: PendingRequest, start: int, stop: int) -> CallerQueue:
        """Count a span that waits from now on; return its caller's queue."""
        queue = self._callers.get(request.caller)
        if queue is None:
            queue = self._callers[request.caller] = CallerQueue(request.caller)
        texts, tokens = stop - start, sum(request.tokens[start:stop])
        self.texts += texts
        self.tokens += tokens
        queue.texts += texts
        queue.tokens += tokens
        if self._heaviest:
            heapq.heappush(self._heaviest, (-self.places(queue.texts, queue.tokens), next(self._numbers), queue))
            if len(self._heaviest) > 2 * len(self._callers) + MAX_OUTDATED:
                self._rank_callers()
        return queue

    def _count_out(self, request: PendingRequest, start: int, stop: int) -> int:
        """Count a span that no longer waits; return its tokens."""
        queue = self._callers[request.caller]
        texts, tokens = stop - start, sum(request.tokens[start:stop])
        self.texts -= texts
        self.tokens -= tokens
        queue.texts -= texts
        queue.tokens -= tokens
        if not queue.texts:
            del self._callers[request.caller]
            if not self._callers:
                self._heaviest.clear()
        return tokens

    def _next_cost(self, request: PendingRequest) -> int:
        """Return the cost of a request's next slice, rounded down to grains: small requests keep their order."""
        cost = request.next_cost
        return cost - cost % self._grain

    def _leave(self, request: PendingRequest) -> None:
        """Remove a request from its caller's queue."""
        queue = self._callers.get(request.caller)
        if queue and request in queue.requests.times:
            queue.requests.leave(request)
            self._place(queue)

    def _place(self, queue: CallerQueue) -> None:
        """Update the place of a caller; without requests, remember its virtual time if it is ahead."""
        if first := queue.requests.first():
            self._turns.set_next_cost(queue, self._next_cost(first))
            return
        if queue.requests.times:  # all of them are skipped for now
            return
        time, now = self._turns.leave(queue), self._turns.now
        if not self._turns:
            self._ahead.clear()
        elif time > now:
            self._ahead[queue.caller] = time
            if len(self._ahead) > 2 * len(self._callers) + MAX_OUTDATED:
                self._ahead = {caller: time for caller, time in self._ahead.items() if time > now}
