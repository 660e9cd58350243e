"""Cache the JSON of labels in recent answers, bounded in bytes."""

import sys
from collections.abc import Collection
from threading import Lock

import numpy as np
from pydantic_core import to_json

from retrieval.bundle.labels import LabelTable
from service.bundles.memory_check import LABEL_CACHE_BYTES

ENTRY_BYTES = 200  # overhead per entry, rounded up: dictionary slot and key
LARGEST = 64  # a label that takes more than 1/64 of the cache is not stored


class LabelCache:
    """The JSON of labels without their scores. Safe to use from several threads."""

    def __init__(self, labels: LabelTable, most_bytes: int = LABEL_CACHE_BYTES) -> None:
        self._labels = labels
        self._most_bytes = most_bytes
        self._written: dict[int, str] = {}  # label row → JSON
        self._changing = Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._written)

    def get(self, rows: Collection[int]) -> dict[int, str]:
        """Return the JSON of at least these rows. Do not modify the result: it may be the cache itself."""
        written = self._written
        missing = [row for row in rows if row not in written]
        if not missing:
            return written
        texts = [self._write(label) for label in self._labels.take(np.array(missing))]
        result = {row: written[row] for row in rows if row in written}
        result.update(zip(missing, texts, strict=True))
        if LARGEST * max(map(_entry_bytes, texts)) <= self._most_bytes:
            self._keep(result)
        return result

    def _keep(self, labels: dict[int, str]) -> None:
        """Add labels to the cache; replace its content when they do not fit."""
        with self._changing:
            new = {row: text for row, text in labels.items() if row not in self._written}
            size = sum(map(_entry_bytes, new.values()))
            if self.bytes + size <= self._most_bytes:
                self._written.update(new)
                self.bytes += size
                return
            size = sum(map(_entry_bytes, labels.values()))
            if size <= self._most_bytes:  # a new dictionary: another thread may be reading the old one
                self._written, self.bytes = labels, size

    @staticmethod
    def _write(label: dict[str, object]) -> str:
        core = {"id": label.pop("id"), "text": label.pop("text"), "attributes": label}
        return to_json(core, inf_nan_mode="null").decode()[1:-1]


def _entry_bytes(text: str) -> int:
    """Return the memory that one label takes in the cache."""
    return sys.getsizeof(text) + ENTRY_BYTES
