"""Answers that were given before: bounded in bytes, and never of another bundle or another list of paused labels."""

from collections import OrderedDict

from service.engine.protocol import Query
from service.observe.metrics import Metrics

OVERHEAD = 256  # bytes of Python's own around an entry
LARGEST = 16  # an answer that would take more than this part of the room is not kept

Key = tuple[int, int, bytes]


class Answers:
    """Bodies by the state of the service and the whole request; the one that was not asked for longest goes first."""

    def __init__(self, room: int, metrics: Metrics) -> None:
        """`room` is in bytes."""
        self._room = room
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._hits, self._misses = metrics.cache.labels("hit"), metrics.cache.labels("miss")
        self.bytes = 0
        metrics.cache_bytes.set_function(lambda: self.bytes)

    def get(self, key: Key) -> bytes | None:
        body = self._kept.get(key)
        if body is None:
            self._misses.inc()
            return None
        self._hits.inc()
        self._kept.move_to_end(key)
        return body

    def keep(self, key: Key, body: bytes) -> None:
        """Keep an answer, and as many of the earlier ones as there is room for."""
        size = _size(key, body)
        if size * LARGEST > self._room or key in self._kept:
            return
        self._kept[key] = body
        self.bytes += size
        while self.bytes > self._room:
            self.bytes -= _size(*self._kept.popitem(last=False))


def key_of(state: tuple[int, int], asked: Query) -> Key:
    """The whole request in the state of the service that answers it: its generation, and the changes of what is paused.

    The order of a filter's attributes is part of it: the same request, written otherwise, is answered anew.
    """
    return (*state, asked.to_bytes())


def _size(key: Key, body: bytes) -> int:
    return OVERHEAD + len(key[-1]) + len(body)
