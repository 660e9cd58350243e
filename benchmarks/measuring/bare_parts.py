"""Compare `Retriever.search` with the sum of its parts, on the same batches and with the same threads.

The parts are the retriever's tokenizer, ONNX Runtime session and hnswlib index, called directly. Only these three calls
are timed, not the conversions between them.

Suffixes: Q queries of a batch, T tokens, D vector width.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from retrieval import Retriever
from retrieval.search.indexes import HnswIndex, VectorIndex, Vectors
from retrieval.search.pca_index import PcaIndex

K = 10
PARTS = ("encode_batch", "ONNX Runtime", "hnswlib")

Seconds = tuple[float, float]  # wall time, CPU time


@dataclass(frozen=True)
class PartsRound:
    """Milliseconds per query of each part and of the complete search, as wall and CPU time."""

    parts: dict[str, Seconds]
    whole: Seconds

    def sums(self) -> Seconds:
        """Return the sum of the parts."""
        clock, processor = zip(*self.parts.values(), strict=True)
        return sum(clock), sum(processor)

    def ratios(self) -> Seconds:
        """Return the throughput of the complete search divided by that of its parts."""
        (clock, processor), whole = self.sums(), self.whole
        return clock / whole[0], processor / whole[1]


def rounds(retriever: Retriever, texts: Sequence[str], batch: int, batches: int, repeats: int) -> list[PartsRound]:
    """Measure both sides on the same batches, in alternation, never the same batch twice in succession."""
    batch_list = [texts[start : start + batch] for start in range(0, len(texts) - batch + 1, batch)][:batches]
    bare = BareParts(retriever)
    for warm in batch_list[:10]:
        bare.search(warm)
        retriever.search(warm, K)
    return [_round(retriever, bare, batch_list) for _ in range(repeats)]


def _round(retriever: Retriever, bare: "BareParts", batches: list[Sequence[str]]) -> PartsRound:
    bare.spent = dict.fromkeys(PARTS, (0.0, 0.0))
    whole, queries = (0.0, 0.0), sum(map(len, batches))
    for index, batch in enumerate(batches):
        bare.search(batch)
        opposite = batches[(index + len(batches) // 2) % len(batches)]
        whole = _plus(whole, timed(partial(retriever.search, opposite, K))[1])
    spent = {name: (1000 * clock / queries, 1000 * cpu / queries) for name, (clock, cpu) in bare.spent.items()}
    return PartsRound(spent, (1000 * whole[0] / queries, 1000 * whole[1] / queries))


class BareParts:
    """The three calls; `spent` is the sum of the time of each."""

    def __init__(self, retriever: Retriever) -> None:
        parts = retriever._open_parts()
        self._encoder = parts.encoder
        index: VectorIndex = retriever.candidates.index
        self._projection_DW: Vectors | None = None
        if isinstance(index, PcaIndex):
            self._projection_DW, index = index.projection_DW, index.index
        assert isinstance(index, HnswIndex)
        self._index = index
        weight = retriever.manifest.classifier_weight
        self._scale_D, self._model = retriever.manifest.model.query_scale(weight), retriever.manifest.model
        ef_search = retriever.manifest.index.ef_search_at(weight)
        assert ef_search is not None, "no bundle is exported whose default weight needs exact search"
        self.ef_search = ef_search
        self.spent: dict[str, Seconds] = {}

    def search(self, batch: Sequence[str]) -> None:
        """Search a batch with hnswlib; the rows and distances are discarded."""
        tokenizer, session, index = self._encoder._tokenizer, self._encoder._session, self._index._index
        assert session is not None, "an open retriever has a session"
        encodings = self._timed(PARTS[0], lambda: tokenizer.encode_batch_fast(list(batch)))
        inputs = self._padded([encoding.ids for encoding in encodings])
        vectors_QD = self._timed(PARTS[1], lambda: session.run(None, inputs)[0]) * self._scale_D
        if self._projection_DW is not None:
            vectors_QD = vectors_QD @ self._projection_DW
        index.set_ef(self.ef_search)
        self._timed(PARTS[2], lambda: index.knn_query(vectors_QD, k=K, num_threads=self._index._pool.threads))
        index.set_ef(self._index.ef)

    def _padded(self, ids: list[list[int]]) -> dict[str, Any]:
        longest = max(1, *map(len, ids))
        ids_QT = np.full((len(ids), longest), self._model.pad_id, np.int64)
        mask_QT = np.zeros_like(ids_QT)
        for row, ids_T in enumerate(ids):
            ids_T = ids_T or [self._model.unknown_id]
            ids_QT[row, : len(ids_T)], mask_QT[row, : len(ids_T)] = ids_T, 1
        return {"input_ids": ids_QT, "attention_mask": mask_QT}

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        result, seconds = timed(call)
        self.spent[name] = _plus(self.spent.get(name, (0.0, 0.0)), seconds)
        return result


def timed(call: Callable[[], Any]) -> tuple[Any, Seconds]:
    clock, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - clock, time.process_time() - processor)


def _plus(first: Seconds, second: Seconds) -> Seconds:
    return first[0] + second[0], first[1] + second[1]
