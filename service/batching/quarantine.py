"""Quarantine queries that killed engines, so that the same query cannot kill another one."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from time import monotonic

from retrieval.query_text import encoder_texts
from service import errors
from service.engine.protocol import Query

MAX_QUERIES = 1024
SECONDS = 3600.0  # length of the quarantine; it also ends a wrong one


class Quarantine:
    """Hashes of quarantined queries, each a text with its request's options. The oldest ones are dropped first.

    Texts are hashed as the encoder reads them, so the spellings of a query are in quarantine together.

    cachetools.TTLCache would need 2 µs per request to report that it is empty, which it nearly always is.
    """

    def __init__(self, query_identity: int = 0) -> None:
        self._query_identity = query_identity
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, query: Query, texts: Sequence[str], now: float | None = None) -> None:
        """Quarantine these texts with the options of a request."""
        until = (monotonic() if now is None else now) + SECONDS
        for key in _hashes(query, encoder_texts(texts, self._query_identity)):
            self._until[key] = until
        while len(self._until) > MAX_QUERIES:
            self._until.popitem(last=False)

    def check(self, query: Query, now: float | None = None) -> None:
        """Check that no text of a request is in quarantine. Raises Refusal 422."""
        now = monotonic() if now is None else now
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if not self._until:
            return
        read = encoder_texts(query.texts, self._query_identity)
        for text, key in zip(query.texts, _hashes(query, read), strict=True):
            if key in self._until:
                raise errors.quarantined(text)


def _hashes(query: Query, texts: Sequence[str]) -> Iterator[bytes]:
    """Yield the hash of each text with the request's options.

    The options are included: otherwise a filter that ends engines could block any text for all callers. They are hashed
    once, because a filter may have 64 kB and a request 256 texts.
    """
    options = hashlib.blake2b(query.with_texts(()).to_bytes(), digest_size=16)
    for text in texts:
        key = options.copy()
        key.update(text.encode())
        yield key.digest()
