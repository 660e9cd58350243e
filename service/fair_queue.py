"""Fair queueing between callers, and between the requests of one caller.

Weighted fair queueing: every caller has a virtual time, which grows by the cost of what the engine is given for it. The
caller goes next whose time would be least after its next slice, so a small request goes before large ones. The queue's
own virtual time is what each caller would have been given if all had been served evenly. A caller that returns starts
there: it neither saves up what it did not use nor waits for what others used. The same rule orders the requests of one
caller.
"""

import heapq
from collections import OrderedDict
from collections.abc import Generator, Iterator
from itertools import count
from typing import Generic, TypeVar

from service.callers import Caller
from service.pending_request import PendingRequest

Flow = TypeVar("Flow")
Entry = tuple[float, int, Flow]  # virtual time, order of arrival, flow
SLACK = 64  # outdated entries of a heap that are always allowed


class VirtualTimes(Generic[Flow]):
    """Flows that wait, in the order of their virtual times after what they are given next."""

    def __init__(self) -> None:
        self.times: dict[Flow, float] = {}  # of the waiting flows, in the order in which they joined
        self.now = 0.0  # the queue's own virtual time
        self._keys: dict[Flow, float] = {}
        self._heap: list[Entry[Flow]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self.times)

    def join(self, flow: Flow, next_cost: float, since: float = 0.0) -> None:
        """Add a flow that was last given something at virtual time `since`."""
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
        """Return the next flow; None when none waits."""
        heap = self._heap
        while heap and self._keys.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def set_aside(self) -> Entry[Flow]:
        """Take the next flow out for the moment; it keeps its place for `put_back`."""
        return heapq.heappop(self._heap)

    def put_back(self, entry: Entry[Flow]) -> None:
        """Undo `set_aside`."""
        heapq.heappush(self._heap, entry)

    def charge(self, flow: Flow, cost: float) -> None:
        """Count what the engine was given for a flow; `expect` or `leave` follows."""
        self.now += cost / len(self.times)
        self.times[flow] += cost

    def expect(self, flow: Flow, next_cost: float) -> None:
        """Place a flow by what it is given next."""
        key = self.times[flow] + next_cost
        if self._keys.get(flow) == key:
            return
        self._keys[flow] = key
        heapq.heappush(self._heap, (key, next(self._numbers), flow))
        if len(self._heap) > 2 * len(self.times) + SLACK:
            self._heap = [entry for entry in self._heap if self._keys.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)


class CallerQueue:
    """The waiting requests of one caller, and how much of the queue they take."""

    __slots__ = ("caller", "requests", "texts", "tokens")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.requests: VirtualTimes[PendingRequest] = VirtualTimes()
        self.texts = 0  # not sent to an engine
        self.tokens = 0

    @property
    def newest(self) -> PendingRequest | None:
        """The request that joined last; None when all that waits was put back."""
        return next(reversed(self.requests.times), None)


class FairQueue:
    """The requests that wait for an engine; those that an engine had and lost come before all others.

    A place is what a text takes of the queue: one for the text, and one more for each `tokens_per_place` tokens.
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
        self._past: dict[Caller, float] = {}  # virtual times of callers that have nothing waiting and are ahead
        # by places, the most first; filled by the first call of `heaviest` and kept until the queue is empty
        self._heaviest: list[tuple[float, int, CallerQueue]] = []
        self._numbers = count()
        self._last_given: PendingRequest | None = None

    def __bool__(self) -> bool:
        return bool(self._returned or self._turns)

    @property
    def callers(self) -> int:
        """How many callers have texts waiting."""
        return len(self._callers)

    def places(self, texts: int, tokens: int) -> float:
        """Return how much of the queue some texts take."""
        return texts + tokens / self._tokens_per_place

    def places_of(self, caller: Caller) -> float:
        """Return how much of the queue a caller has."""
        queue = self._callers.get(caller)
        return self.places(queue.texts, queue.tokens) if queue else 0.0

    def add(self, request: PendingRequest) -> None:
        """Queue a request behind its caller's others."""
        queue = self._count_in(request, 0, len(request.tokens))
        is_new = not queue.requests.times
        next_cost = self._next_cost(request)
        queue.requests.join(request, next_cost)
        if is_new:
            self._turns.join(queue, next_cost, self._past.pop(request.caller, 0.0) if self._past else 0.0)
        elif queue.requests.first() is request:
            self._turns.expect(queue, next_cost)

    def add_first(self, request: PendingRequest, start: int, stop: int) -> None:
        """Put texts back that an engine had: they go before all others."""
        request.put_back(start, stop)
        self._count_in(request, start, stop)
        self._leave(request)
        self._returned[request] = None
        self._returned.move_to_end(request, last=False)

    def remove(self, request: PendingRequest) -> None:
        """Forget a request, wherever it is."""
        if not request.todo:  # an engine has all of it
            return
        self._returned.pop(request, None)
        self._leave(request)
        for start, stop in request.todo:
            self._count_out(request, start, stop)
        request.todo.clear()

    def first(self) -> PendingRequest | None:
        """Return the request whose turn it is; None when none waits."""
        if self._returned:
            return next(iter(self._returned))
        queue = self._turns.first()
        return queue.requests.first() if queue else None

    def in_turn(self, most: int) -> Generator[PendingRequest]:
        """Give requests in the order of their turns, to be cut and `given`; one that is not is set aside until the end.

        At most `most` are set aside. Close the iterator before anything else is done with the queue.
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
                    if request is None:  # all of this caller's are set aside
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
        """Count a span that was cut from a request and goes to the engine; return its tokens."""
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
        """Count what a caller's requests have cost beyond what was expected of them."""
        queue = self._callers.get(caller)
        if queue and queue.requests:
            self._turns.times[queue] += cost
            self._place(queue)
        elif self._turns:
            self._past[caller] = max(self._past.get(caller, 0.0), self._turns.now) + cost

    def all(self) -> Iterator[PendingRequest]:
        """Give every request: those put back first, then caller by caller."""
        yield from self._returned
        for queue in self._turns.times:
            yield from queue.requests.times

    def heaviest(self) -> CallerQueue | None:
        """Return the caller that takes most of the queue."""
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
        """Return the cost of a request's next slice in whole grains, so that small requests keep their order."""
        cost = request.next_cost
        return cost - cost % self._grain

    def _leave(self, request: PendingRequest) -> None:
        """Take a request out of its caller's turn."""
        queue = self._callers.get(request.caller)
        if queue and request in queue.requests.times:
            queue.requests.leave(request)
            self._place(queue)

    def _place(self, queue: CallerQueue) -> None:
        """Place a caller by its next request; remember its virtual time when it has none and is ahead."""
        if first := queue.requests.first():
            self._turns.expect(queue, self._next_cost(first))
            return
        if queue.requests.times:  # all of them are set aside for the moment
            return
        time, now = self._turns.leave(queue), self._turns.now
        if not self._turns:
            self._past.clear()
        elif time > now:
            self._past[queue.caller] = time
            if len(self._past) > 2 * len(self._callers) + SLACK:
                self._past = {caller: past for caller, past in self._past.items() if past > now}
