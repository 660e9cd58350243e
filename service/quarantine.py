"""Remember the queries that ended engines, so that the same query cannot end another one."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from time import monotonic

from pydantic_core import to_json

from service import errors
from service.frames import Asked

MAX_QUERIES = 1024
SECONDS = 3600.0  # a query that was blamed by mistake is answered again after this


class Quarantine:
    """Hashes of queries: one text with the options it was asked with. The oldest is dropped when there are too many."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, asked: Asked, texts: Sequence[str], now: float | None = None) -> None:
        """Refuse these texts of a request from now on."""
        until = (monotonic() if now is None else now) + SECONDS
        for text in texts:
            self._until[_hash(asked, text)] = until
        while len(self._until) > MAX_QUERIES:
            self._until.popitem(last=False)

    def check(self, asked: Asked, now: float | None = None) -> None:
        """Check that no text of a request is in quarantine. Raises Refusal 422."""
        now = monotonic() if now is None else now
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if not self._until:
            return
        for text in asked.queries:
            if _hash(asked, text) in self._until:
                raise errors.quarantined(text)


def _hash(asked: Asked, text: str) -> bytes:
    """The options are part of it: else a filter that ends engines could take any text away from everybody."""
    return hashlib.blake2b(to_json(asked._replace(queries=[text])), digest_size=16).digest()
