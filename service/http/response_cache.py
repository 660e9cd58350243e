"""Cache responses of /predict, bounded in bytes. Spellings of one query share an entry."""

from collections.abc import Sequence
from itertools import chain

from cachetools import LRUCache
from pydantic_core import to_json

from retrieval.query_text import encoder_texts
from service.bundles.manager import ServedState
from service.engine.protocol import Query
from service.observe.metrics import Metrics

ENTRY_BYTES = 256  # overhead of Python objects per entry
PART_BYTES = 48  # overhead per part of a body
LARGEST_PART = 16  # an entry larger than 1/16 of the cache is not stored


Key = tuple[ServedState, bytes]


class ResponseCache:
    """Response bodies by key. The least recently used entries are evicted first."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        # values are (parts, bytes of the entry): getsizeof gets only the value, and keys count too
        self._entries: LRUCache[Key, tuple[list[bytes], int]] = LRUCache(max_bytes, getsizeof=lambda entry: entry[1])
        self._hits, self._misses = metrics.cache.labels("hit"), metrics.cache.labels("miss")
        metrics.cache_bytes.set_function(lambda: self._entries.currsize)

    def get(self, key: Key, texts: Sequence[str]) -> bytes | None:
        """Return a stored body with these query texts in it; None when there is none."""
        try:
            parts, _ = self._entries[key]
        except KeyError:
            self._misses.inc()
            return None
        self._hits.inc()
        return b"".join(chain.from_iterable(zip(parts, [*map(to_json, texts), b""], strict=True)))

    def add(self, key: Key, texts: Sequence[str], body: bytes) -> None:
        """Store a body for these query texts; evict others when there is no room."""
        size = ENTRY_BYTES + PART_BYTES * (len(texts) + 1) + len(key[-1]) + len(body)
        if size * LARGEST_PART <= self._entries.maxsize and key not in self._entries:
            self._entries[key] = without_texts(body, texts), size


def cache_key(state: ServedState, query: Query) -> Key:
    """Return the key of a request: the state, its options, and its texts as the encoder reads them.

    The order of a filter's attributes is part of the key.
    """
    return state, query.with_texts(encoder_texts(query.texts, state.query_identity)).to_bytes()


def without_texts(body: bytes, texts: Sequence[str]) -> list[bytes]:
    """Return the parts of a response body before, between and after its query texts.

    Only the end of one text's hits and the start of the next result look like `]},{"query":`, since a hit begins with
    its id and quotes in texts are escaped.
    """
    parts, end = [], 0
    for place, text in enumerate(texts):
        written = to_json(text)
        before = b']},{"query":' if place else b'"results":[{"query":'
        start = body.index(before + written + b',"hits":[', end) + len(before)
        parts.append(body[end:start])
        end = start + len(written)
    return [*parts, body[end:]]
