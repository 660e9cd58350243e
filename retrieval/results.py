"""The results of a search: label rows with scores, and hits with texts and attributes.

Suffixes: Q queries, K results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.labels import LabelTable
from retrieval.search.memory import Neighbours

NO_ROW = -1  # fills the end of a query's results if there are fewer than K


@dataclass(frozen=True, slots=True)
class SupportingQuery:
    """A training query that has the label of a hit: its text, and its part of the hit's `memory`."""

    query: str
    share: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One label found for a query.

    Attributes:
        score: dual_encoder + classifier + memory.
        dual_encoder: the dual encoder's part of the score at the weight of the search.
        classifier: the classifier's part of the score at the weight of the search.
        memory: the part of the votes of the nearest training queries; 0 without a query memory.
        supporting: the training queries that voted for the label, the strongest first, if they were requested.
    """

    id: str
    text: str
    score: float
    dual_encoder: float
    classifier: float
    memory: float
    attributes: dict[str, Any]
    supporting: tuple[SupportingQuery, ...] = ()


Supporting = Sequence[Sequence[tuple[SupportingQuery, ...]]]  # per query and hit


def hit_record(hit: Hit, supporting: bool = False) -> dict[str, Any]:
    """Return a hit for JSON; with its training queries if `supporting`."""
    record = asdict(hit)
    queries = record.pop("supporting")
    return record | {"supporting": list(queries)} if supporting else record


class SearchResults(list[list[Hit]]):
    """The hits of each query, and `generation`, the name of the bundle that all of them are from."""

    def __init__(self, hits: Iterable[list[Hit]], generation: str) -> None:
        super().__init__(hits)
        self.generation = generation


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds per stage of one search, the number of encoded tokens, and the number of padding tokens among them."""

    tokenize: float
    encode: float
    search: float
    tokens: int
    padding: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Label rows per query, best first, with exact scores: `dual_QK` + `classifier_QK` + `memory_QK` = `scores_QK`.

    If a query has fewer than K results, the rest of `rows_QK` is NO_ROW. `neighbours` are the nearest training queries
    whose votes are in the scores at weight `memory_weight`; None without votes.
    """

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float64]
    dual_QK: NDArray[np.float64]
    classifier_QK: NDArray[np.float64]
    memory_QK: NDArray[np.float64]
    timings: Timings
    memory_weight: float = 0.0
    neighbours: Neighbours | None = None


def hits_of(ranking: Ranking, labels: LabelTable, supporting: Supporting = ()) -> list[list[Hit]]:
    """Look up the label table's rows of a ranking; `supporting` are the training queries of each hit, if requested."""
    rows_QK = [[row for row in rows_K if row != NO_ROW] for rows_K in ranking.rows_QK.tolist()]
    records = labels.records(list(chain.from_iterable(rows_QK)))
    parts = (ranking.scores_QK, ranking.dual_QK, ranking.classifier_QK, ranking.memory_QK)
    supporting = supporting or [[()] * len(rows_K) for rows_K in rows_QK]
    return [
        [
            Hit(id_, text, score, dual, classifier, memory, attributes, queries)
            for (id_, text, attributes), queries, score, dual, classifier, memory in zip(  # noqa: B905  # rows may be fewer
                islice(records, len(rows_K)), supporting_K, *scores_K
            )
        ]
        for rows_K, supporting_K, *scores_K in zip(rows_QK, supporting, *(part.tolist() for part in parts), strict=True)
    ]
