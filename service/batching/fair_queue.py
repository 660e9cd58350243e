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
from typing import Generic, TypeVar

from service.access.callers import Caller
from service.batching.pending_request import PendingRequest

Flow = TypeVar("Flow")
Entry = tuple[float, int, Flow]  # virtual time, order of arrival, flow
SLACK = 64  # outdated entries of a heap that are always allowed


class VirtualTimes(Generic[Flow]):
    """Waiting flows, ordered by their virtual finish times."""

    def __init__(self) -> None:
        self.times: dict[Flow, float] = {}  # waiting flow → virtual time, in order of joining
        self.now = 0.0  # virtual time of the queue
        self._keys: dict[Flow, float] = {}
        self._heap: list[Entry[Flow]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self.times)

    def join(self, flow: Flow, next_cost: float, since: float = 0.0) -> None:
        """Add a flow whose virtual time is at least `since`."""
        self.times[flow] = max(self.now, since)
        self.expect(flow, next_cost)

    def leave(self, flow: Flow) -> float:
        """Remove a flow; return its virtual time."""
        del self._keys[flow]
        time = self.times.pop(flow)
        if not self.times:
            self._heap.clear()
        return time

    def first(self) -> Flow | None:
        """Return the next flow; None when the queue is empty."""
        heap = self._heap
        while heap and self._keys.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def set_aside(self) -> Entry[Flow]:
        """Remove the next flow temporarily; `put_back` restores it."""
        return heapq.heappop(self._heap)

    def put_back(self, entry: Entry[Flow]) -> None:
        """Undo `set_aside`."""
        heapq.heappush(self._heap, entry)

    def charge(self, flow: Flow, cost: float) -> None:
        """Charge a flow for work sent to the engine. Call `expect` or `leave` next."""
        self.now += cost / len(self.times)
        self.times[flow] += cost

    def expect(self, flow: Flow, next_cost: float) -> None:
        """Set the cost of a flow's next slice, which determines its place."""
        key = self.times[flow] + next_cost
        if self._keys.get(flow) == key:
            return
        self._keys[flow] = key
        heapq.heappush(self._heap, (key, next(self._numbers), flow))
        if len(self._heap) > 2 * len(self.times) + SLACK:
            self._heap = [entry for entry in self._heap if self._keys.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)


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
        self._past: dict[Caller, float] = {}  # virtual times of callers ahead of the queue, without waiting requests
        # by places, the most first; filled by the first call of `heaviest` and kept until the queue is empty
        self._heaviest: list[tuple[float, int, CallerQueue]] = []
        self._numbers = count()
        self._last_given: PendingRequest | None = None

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
            self._turns.join(queue, next_cost, self._past.pop(request.caller, 0.0) if self._past else 0.0)
        elif queue.requests.first() is request:
            self._turns.expect(queue, next_cost)

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

    def in_turn(self, most: int) -> Generator[PendingRequest]:
        """Yield requests in order. Requests that the consumer does not pass to `given` are skipped until the end.

        At most `most` requests are skipped. Close the iterator before any other call.
        """
        passed: set[PendingRequest] = set()
        aside: list[tuple[VirtualTimes[PendingRequest], Entry[PendingRequest]]] = []
        empty: list[Entry[CallerQueue]] = []
        try:
            while len(passed) < most:
                request = next((one for one in self._returned if one not in passed), None) if self._returned else None
                queue = None if request else self._turns.first()
                if queue:
                    request = queue.requests.first()
                    if request is None:  # all requests of this caller are skipped
                        empty.append(self._turns.set_aside())
                        continue
                if request is None:
                    return
                self._last_given = None
                yield request
                if self._last_given is not request:
                    passed.add(request)
                    if queue:
                        aside.append((queue.requests, queue.requests.set_aside()))
        finally:
            for requests, entry in aside:
                requests.put_back(entry)
            for caller in empty:
                self._turns.put_back(caller)

    def given(self, request: PendingRequest, start: int, stop: int) -> int:
        """Charge the span of a request that goes to the engine; return its tokens."""
        self._last_given = request
        if request in self._returned:
            if not request.todo:
                del self._returned[request]
            return self._count_out(request, start, stop)
        queue, cost = self._callers[request.caller], request.cost(start, stop)
        queue.requests.charge(request, cost)
        self._turns.charge(queue, cost)
        if request.todo:
            queue.requests.expect(request, self._next_cost(request))
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
            self._past[caller] = max(self._past.get(caller, 0.0), self._turns.now) + cost

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
            if queue.texts:  # it takes less than when it was recorded
                heapq.heapreplace(heap, (-places, next(self._numbers), queue))
            else:
                heapq.heappop(heap)
        return None

    def _rank_callers(self) -> None:
        self._heaviest = [
            (-self.places(one.texts, one.tokens), next(self._numbers), one) for one in self._callers.values()
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
            if len(self._heaviest) > 2 * len(self._callers) + SLACK:
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
            self._turns.expect(queue, self._next_cost(first))
            return
        if queue.requests.times:  # all of them are skipped for now
            return
        time, now = self._turns.leave(queue), self._turns.now
        if not self._turns:
            self._past.clear()
        elif time > now:
            self._past[queue.caller] = time
            if len(self._past) > 2 * len(self._callers) + SLACK:
                self._past = {caller: past for caller, past in self._past.items() if past > now}
