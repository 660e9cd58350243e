"""Cache the JSON of labels in recent answers, bounded in bytes."""

import sys
from collections.abc import Collection
from threading import Lock

import numpy as np
from pydantic_core import to_json

from retrieval.bundle.labels import LabelTable
from service.engine.options import LABEL_CACHE_BYTES

ENTRY_BYTES = 200  # overhead per entry, rounded up: dictionary slot and key
MIN_ENTRIES = 64  # a label that takes more than 1/64 of the cache is not stored


class LabelCache:
    """The JSON of labels without their scores. Safe to use from several threads."""

    # Not cachetools.LRUCache, which needs a lock for reads: 0.5 µs per hit, a dictionary takes 0.1 µs (decision 0074).

    def __init__(self, labels: LabelTable, max_bytes: int = LABEL_CACHE_BYTES) -> None:
        self._labels = labels
        self._max_bytes = max_bytes
        self._json: dict[int, str] = {}  # label row → JSON
        self._changing = Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._json)

    def get(self, rows: Collection[int]) -> dict[int, str]:
        """Return the JSON of at least these rows. Do not modify the result: it may be the cache itself."""
        cached = self._json
        missing = [row for row in rows if row not in cached]
        if not missing:
            return cached
        texts = [self._serialize(label) for label in self._labels.take(np.array(missing))]
        result = {row: cached[row] for row in rows if row in cached}
        result.update(zip(missing, texts, strict=True))
        if MIN_ENTRIES * max(map(_entry_bytes, texts)) <= self._max_bytes:
            self._store(result)
        return result

    def _store(self, labels: dict[int, str]) -> None:
        """Add labels to the cache; replace its content when they do not fit."""
        with self._changing:
            new = {row: text for row, text in labels.items() if row not in self._json}
            size = sum(map(_entry_bytes, new.values()))
            if self.bytes + size <= self._max_bytes:
                self._json.update(new)
                self.bytes += size
                return
            size = sum(map(_entry_bytes, labels.values()))
            if size <= self._max_bytes:  # a new dictionary: another thread may be reading the old one
                self._json, self.bytes = labels, size

    @staticmethod
    def _serialize(label: dict[str, object]) -> str:
        core = {"id": label.pop("id"), "text": label.pop("text"), "attributes": label}
        return to_json(core, inf_nan_mode="null").decode()[1:-1]


def _entry_bytes(text: str) -> int:
    """Return the memory that one label takes in the cache."""
    return sys.getsizeof(text) + ENTRY_BYTES
