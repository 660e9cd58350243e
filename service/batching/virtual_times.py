"""Order waiting flows by virtual finish time, for weighted fair queueing."""

import heapq
from itertools import count
from typing import Generic, TypeVar

Flow = TypeVar("Flow")
Entry = tuple[float, int, Flow]  # virtual finish time, order of arrival, flow
MAX_OUTDATED = 64  # outdated heap entries that are always allowed


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
        self.set_next_cost(flow, next_cost)

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

    def skip(self) -> Entry[Flow]:
        """Remove the next flow temporarily; `restore` puts it back."""
        return heapq.heappop(self._heap)

    def restore(self, entry: Entry[Flow]) -> None:
        """Undo `skip`."""
        heapq.heappush(self._heap, entry)

    def charge(self, flow: Flow, cost: float) -> None:
        """Charge a flow for work sent to the engine. Call `set_next_cost` or `leave` next."""
        self.now += cost / len(self.times)
        self.times[flow] += cost

    def set_next_cost(self, flow: Flow, next_cost: float) -> None:
        """Set the cost of a flow's next slice, which determines its place."""
        key = self.times[flow] + next_cost
        if self._keys.get(flow) == key:
            return
        self._keys[flow] = key
        heapq.heappush(self._heap, (key, next(self._numbers), flow))
        if len(self._heap) > 2 * len(self.times) + MAX_OUTDATED:
            self._heap = [entry for entry in self._heap if self._keys.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
