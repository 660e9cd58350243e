"""Cache responses of /predict, bounded in bytes. A key includes the generation and the version of the paused labels."""

from cachetools import LRUCache

from service.engine.protocol import Query
from service.observe.metrics import Metrics

ENTRY_BYTES = 256  # overhead of Python objects per entry
LARGEST_PART = 16  # an entry larger than 1/16 of the cache is not stored

Key = tuple[int, int, bytes]  # generation, version of the paused labels, request


class ResponseCache:
    """Response bodies by key. The least recently used entries are evicted first."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        # values are (body, bytes of the entry): getsizeof gets only the value, and keys count too
        self._entries: LRUCache[Key, tuple[bytes, int]] = LRUCache(max_bytes, getsizeof=lambda entry: entry[1])
        self._hits, self._misses = metrics.cache.labels("hit"), metrics.cache.labels("miss")
        metrics.cache_bytes.set_function(lambda: self._entries.currsize)

    def get(self, key: Key) -> bytes | None:
        """Return a stored body; None when there is none."""
        try:
            body, _ = self._entries[key]
        except KeyError:
            self._misses.inc()
            return None
        self._hits.inc()
        return body

    def add(self, key: Key, body: bytes) -> None:
        """Store a body; evict others when there is no room."""
        size = ENTRY_BYTES + len(key[-1]) + len(body)
        if size * LARGEST_PART <= self._entries.maxsize and key not in self._entries:
            self._entries[key] = body, size


def cache_key(state: tuple[int, int], query: Query) -> Key:
    """Return the key of a request for a state of the service: its generation and the version of its paused labels.

    The order of a filter's attributes is part of the key.
    """
    return (*state, query.to_bytes())
