"""`Retriever.search` against the sum of its bare parts, on the same batches and with the same threads.

The parts are the retriever's own tokenizer, ONNX Runtime session and hnswlib index, called with nothing around them:
only the three calls are on the clock, not what turns the output of one into the input of the next.

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

Seconds = tuple[float, float]  # of the clock, of the processor


@dataclass(frozen=True)
class Round:
    """Milliseconds a query that each bare part and the whole took, by the clock and by the processor."""

    parts: dict[str, Seconds]
    whole: Seconds

    def sums(self) -> Seconds:
        """What the parts take together."""
        clock, processor = zip(*self.parts.values(), strict=True)
        return sum(clock), sum(processor)

    def ratios(self) -> Seconds:
        """The throughput of the whole as a share of that of its parts."""
        (clock, processor), whole = self.sums(), self.whole
        return clock / whole[0], processor / whole[1]


def rounds(retriever: Retriever, texts: Sequence[str], batch: int, batches: int, repeats: int) -> list[Round]:
    """Both sides answer the same batches, by turns and never the same one in succession."""
    asked = [texts[start : start + batch] for start in range(0, len(texts) - batch + 1, batch)][:batches]
    bare = Bare(retriever)
    for warm in asked[:10]:
        bare.search(warm)
        retriever.search(warm, K)
    return [_round(retriever, bare, asked) for _ in range(repeats)]


def _round(retriever: Retriever, bare: "Bare", asked: list[Sequence[str]]) -> Round:
    bare.spent = dict.fromkeys(PARTS, (0.0, 0.0))
    whole, queries = (0.0, 0.0), sum(map(len, asked))
    for place, batch in enumerate(asked):
        bare.search(batch)
        opposite = asked[(place + len(asked) // 2) % len(asked)]
        whole = _plus(whole, _taken(partial(retriever.search, opposite, K))[1])
    spent = {name: (1000 * clock / queries, 1000 * cpu / queries) for name, (clock, cpu) in bare.spent.items()}
    return Round(spent, (1000 * whole[0] / queries, 1000 * whole[1] / queries))


class Bare:
    """The three calls, as often as they are asked for; `spent` sums up what each took."""

    def __init__(self, retriever: Retriever) -> None:
        parts = retriever._open_parts()
        self._encoder = parts.encoder
        index: VectorIndex = parts.ranker.index
        self._directions_DW: Vectors | None = None
        if isinstance(index, PcaIndex):
            self._directions_DW, index = index.projection_DW, index.index
        assert isinstance(index, HnswIndex)
        self._index = index
        weight = retriever.manifest.classifier_weight
        self._scale_D, self._model = retriever.manifest.model.query_scale(weight), retriever.manifest.model
        effort = retriever.manifest.index.ef_search_at(weight)
        assert effort is not None, "no bundle is exported whose default weight needs exact search"
        self.effort = effort
        self.spent: dict[str, Seconds] = {}

    def search(self, batch: Sequence[str]) -> None:
        """Ask a batch; the answer is hnswlib's rows and distances, which nobody reads."""
        tokenizer, session, index = self._encoder._tokenizer, self._encoder._session, self._index._index
        encodings = self._timed(PARTS[0], lambda: tokenizer.encode_batch_fast(list(batch)))
        inputs = self._padded([encoding.ids for encoding in encodings])
        vectors_QD = self._timed(PARTS[1], lambda: session.run(None, inputs)[0]) * self._scale_D
        if self._directions_DW is not None:
            vectors_QD = vectors_QD @ self._directions_DW
        index.set_ef(self.effort)
        self._timed(PARTS[2], lambda: index.knn_query(vectors_QD, k=K, num_threads=self._index._pool.threads))
        index.set_ef(self._index.ef)

    def _padded(self, ids: list[list[int]]) -> dict[str, Any]:
        longest = max(1, *map(len, ids))
        ids_QT = np.full((len(ids), longest), self._model.pad_id, np.int64)
        mask_QT = np.zeros_like(ids_QT)
        for row, one in enumerate(ids):
            one = one or [self._model.unknown_id]
            ids_QT[row, : len(one)], mask_QT[row, : len(one)] = one, 1
        return {"input_ids": ids_QT, "attention_mask": mask_QT}

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        result, taken = _taken(call)
        self.spent[name] = _plus(self.spent.get(name, (0.0, 0.0)), taken)
        return result


def _taken(call: Callable[[], Any]) -> tuple[Any, Seconds]:
    clock, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - clock, time.process_time() - processor)


def _plus(one: Seconds, other: Seconds) -> Seconds:
    return one[0] + other[0], one[1] + other[1]
