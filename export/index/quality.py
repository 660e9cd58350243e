"""Check that the indexes of a bundle answer the validation queries as well as exact search, to choose their `ef`.

A recall of 0.995 may cost 0.2 points of P@5 or nothing, depending on which labels are missed. The loss that the gate
"quality" allows is shared: with exact neighbours in the query memory, the index of the labels may lose half of it.
So some `ef` of the memory's index always keeps the bundle within the whole.

Shapes: Q queries, D vector width.
"""

import numpy as np

from export.index.recall import IndexProbe
from export.quality import ValidationQueries, failed_metric
from retrieval.bundle.facts import ModelFacts
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import Rows
from retrieval.search.memory import QueryMemory, add_votes
from training.evaluation.results import MetricValues

QUERIES_PER_BLOCK = 256


class IndexQuality:
    """Measure a label index and a query memory on the validation queries, at the weight chosen in training."""

    def __init__(
        self, encoder: TextEncoder, facts: ModelFacts, index: IndexProbe, validation: ValidationQueries,
        expected: MetricValues, max_loss: float, memory: QueryMemory | None = None,
    ) -> None:  # fmt: skip
        """Encode the validation queries; `expected` are the checkpoint's metrics, `max_loss` is in points."""
        self._encoded_QD, self._facts = encoder.encode(validation.texts).vectors_BD, facts
        self._index, self._validation, self._memory = index, validation, memory
        self._expected, self._max_loss = expected, max_loss

    def labels_suffice(self, ef: int) -> bool:
        """Return whether `ef` candidates of the label index suffice, with exact neighbours in the memory."""
        return self._holds(ef, None, self._max_loss if self._memory is None else self._max_loss / 2)

    def memory_suffices(self, ef: int | None, memory_ef: int) -> bool:
        """Return whether `memory_ef` candidates of the memory's index suffice, with `ef` of the labels' (None: all)."""
        return self._holds(ef, memory_ef, self._max_loss)

    def _holds(self, ef: int | None, memory_ef: int | None, max_loss: float) -> bool:
        def search(weight: float, k: int) -> Rows:
            starts = range(0, len(self._encoded_QD), QUERIES_PER_BLOCK)
            return np.concatenate([self._block_rows(start, weight, k, ef, memory_ef) for start in starts])

        metrics = self._validation.metrics(search)
        return failed_metric(self._expected, metrics, self._validation.scored, max_loss) is None

    def _block_rows(self, start: int, weight: float, k: int, ef: int | None, memory_ef: int | None) -> Rows:
        encoded_QD = self._encoded_QD[start : start + QUERIES_PER_BLOCK]
        query_QD = encoded_QD * self._facts.query_scale(weight)
        scored = self._index.search(query_QD, k, ef)
        if self._memory is None:
            return scored[0]
        votes = self._memory.votes(self._memory.neighbours(encoded_QD, memory_ef))
        gamma = self._memory.facts.weight
        return add_votes(scored, votes, gamma, query_QD, self._index.vectors_LD, self._facts.dual_dim).rows_QK
