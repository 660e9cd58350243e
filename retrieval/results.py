"""The results of a search: label rows with scores, and hits with texts and attributes.

Suffixes: Q queries, K results.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.labels import LabelTable

NO_ROW = -1  # fills the end of a query's results if there are fewer than K


@dataclass(frozen=True, slots=True)
class Hit:
    """One label found for a query.

    Attributes:
        score: dual_encoder + classifier.
        dual_encoder: the dual encoder's part of the score at the weight of the search.
        classifier: the classifier's part of the score at the weight of the search.
    """

    id: str
    text: str
    score: float
    dual_encoder: float
    classifier: float
    attributes: dict[str, Any]


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
    """Label rows per query, best first, with exact scores; `dual_QK` + `classifier_QK` = `scores_QK`.

    If a query has fewer than K results, the rest of `rows_QK` is NO_ROW.
    """

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float64]
    dual_QK: NDArray[np.float64]
    classifier_QK: NDArray[np.float64]
    timings: Timings


def hits_of(ranking: Ranking, labels: LabelTable) -> list[list[Hit]]:
    """Look up the label table's rows of a ranking."""
    rows_QK = [[row for row in rows_K if row != NO_ROW] for rows_K in ranking.rows_QK.tolist()]
    records = labels.records(list(chain.from_iterable(rows_QK)))
    scores = (ranking.scores_QK.tolist(), ranking.dual_QK.tolist(), ranking.classifier_QK.tolist())
    return [
        [
            Hit(id_, text, score, dual, classifier, attributes)
            for (id_, text, attributes), score, dual, classifier in zip(islice(records, len(rows_K)), *scores_K)  # noqa: B905  # rows may be fewer
        ]
        for rows_K, *scores_K in zip(rows_QK, *scores, strict=True)
    ]
