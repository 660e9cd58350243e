"""Keep the JSON of labels that answers had lately, bounded in bytes."""

import sys
from collections.abc import Collection

import numpy as np
from pydantic_core import to_json

from retrieval.labels import LabelTable
from service.memory import LABEL_CACHE_BYTES

ENTRY_BYTES = 200  # of Python's own for each entry, rounded up: its place in the dictionary and its key
LARGEST = 64  # a label that would take more than this part of the cache is not kept


class LabelCache:
    """The JSON of labels without their scores; safe to use from several threads."""

    def __init__(self, labels: LabelTable, most_bytes: int = LABEL_CACHE_BYTES) -> None:
        self._labels = labels
        self._most_bytes = most_bytes
        self._written: dict[int, str] = {}  # by label row
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._written)

    def get(self, rows: Collection[int]) -> dict[int, str]:
        """Return the JSON of these labels, at least. Do not change it: it may be the cache itself."""
        written = self._written
        missing = [row for row in rows if row not in written]
        if not missing:
            return written
        texts = [self._write(label) for label in self._labels.take(np.array(missing))]
        sizes = [sys.getsizeof(text) + ENTRY_BYTES for text in texts]
        found = dict(zip(missing, texts, strict=True))
        if max(sizes) * LARGEST > self._most_bytes:
            return {**{row: written[row] for row in rows if row in written}, **found}
        if self.bytes + sum(sizes) > self._most_bytes:
            # begun anew, not emptied: another thread may be reading the old one
            written = self._written = {row: written[row] for row in rows if row in written}
            self.bytes = sum(sys.getsizeof(text) + ENTRY_BYTES for text in written.values())
        written.update(found)
        self.bytes += sum(sizes)
        return written

    @staticmethod
    def _write(label: dict[str, object]) -> str:
        core = {"id": label.pop("id"), "text": label.pop("text"), "attributes": label}
        return to_json(core, inf_nan_mode="null").decode()[1:-1]
