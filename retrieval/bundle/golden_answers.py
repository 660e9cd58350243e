"""Golden answers: the answers of a bundle when it was built, so that a copy can be checked on any machine.

Suffixes: Q queries, K results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.bundle.facts import Share
from retrieval.bundle.index_file import Buffer
from retrieval.bundle.labels import LabelTable
from retrieval.bundle.manifest import GOLDEN, MANIFEST, Manifest, first_fault
from retrieval.errors import BadInput, BundleError, one_line

K = 10


class RankedRows(Protocol):
    """Label rows per query with their scores, best first."""

    @property
    def rows_QK(self) -> NDArray[np.int64]:
        """Return the label rows."""

    @property
    def scores_QK(self) -> NDArray[np.float64]:
        """Return the scores."""

    @property
    def memory_QK(self) -> NDArray[np.float64]:
        """Return the votes' part of the scores."""


class OpenBundle(Protocol):
    """An open bundle that can be searched, such as a `Retriever`."""

    folder: Path
    manifest: Manifest
    golden: Buffer

    @property
    def labels(self) -> LabelTable:
        """Return the label table."""

    def search_rows(
        self, queries: Sequence[str], k: int = 10, *, weight: float | None = None, include_paused: bool = False
    ) -> RankedRows:
        """Return the k best rows of each query."""


class GoldenAnswer(BaseModel):
    """The label ids of one query, best first, and their scores without votes.

    A vote changes by more than rounding if two training queries are equally near.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    query: str
    ids: Annotated[tuple[str, ...], Field(max_length=K)]
    scores: tuple[float, ...]

    @model_validator(mode="after")
    def _has_one_score_per_label(self) -> Self:
        if len(self.ids) != len(self.scores):
            raise ValueError(f"{len(self.ids)} labels have {len(self.scores)} scores")
        return self


class Golden(BaseModel):
    """The content of golden.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: Share
    answers: tuple[GoldenAnswer, ...]


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """Comparison of current answers with the golden ones.

    `score_deviation` is the largest difference of a score over labels that are in both.
    """

    queries: int
    overlap_at_10: float
    score_deviation: float
    passed: bool

    def __str__(self) -> str:
        return (
            f"{self.queries} golden queries, overlap@10 {self.overlap_at_10:.3f}, "
            f"largest score deviation {self.score_deviation:.1e}"
        )


def record_golden(bundle: OpenBundle, queries: Sequence[str]) -> Golden:
    """Search for some queries at the default weight and return the answers."""
    weight = bundle.manifest.classifier_weight
    ranking = bundle.search_rows(queries, K, weight=weight)
    return Golden(weight=weight, answers=_answers(bundle, queries, ranking))


def write_golden(folder: Path, golden: Golden) -> None:
    """Write golden.json."""
    (folder / GOLDEN).write_text(golden.model_dump_json(indent=1), encoding="utf-8")


def parse_golden(content: Buffer, path: Path) -> Golden:
    """Parse the bytes of a golden.json, named `path` in errors. Raises BundleError."""
    try:
        return Golden.model_validate_json(bytes(content))
    except ValidationError as error:
        raise BundleError(
            f"{path} does not contain golden answers ({first_fault(error)}). Export the bundle again."
        ) from error


def check_golden(bundle: OpenBundle) -> GoldenReport:
    """Search for the golden queries again and compare; `passed`: the manifest's tolerances are met.

    Raises BundleError for invalid golden answers.
    """
    path, facts = bundle.folder / GOLDEN, bundle.manifest.golden
    golden = parse_golden(bundle.golden, path)
    queries = [answer.query for answer in golden.answers]
    if len(queries) != facts.queries:
        raise BundleError(f"{path} has {len(queries)} answers, but {MANIFEST} lists {facts.queries}. Export it again.")
    try:
        ranking = bundle.search_rows(queries, K, weight=golden.weight, include_paused=True)
    except BadInput as error:
        raise BundleError(f"{path} contains an invalid query ({one_line(error)}). Export the bundle again.") from error
    overlaps, deviations = [], [0.0]
    for golden_answer, answer in zip(golden.answers, _answers(bundle, queries, ranking), strict=True):
        expected, actual = (dict(zip(one.ids, one.scores, strict=True)) for one in (golden_answer, answer))
        common = expected.keys() & actual.keys()
        overlaps.append(len(common) / max(len(expected), 1))
        deviations += [abs(expected[label] - actual[label]) for label in common]
    overlap = float(np.mean(overlaps)) if overlaps else 1.0
    deviation = float(np.max(deviations))  # NaN if a score is NaN, which fails every comparison
    passed = overlap >= facts.overlap_at_10 and deviation <= facts.score_tolerance
    return GoldenReport(len(overlaps), overlap, deviation, passed)


def _answers(bundle: OpenBundle, queries: Sequence[str], ranking: RankedRows) -> tuple[GoldenAnswer, ...]:
    scores_QK = (ranking.scores_QK - ranking.memory_QK).tolist()
    return tuple(
        GoldenAnswer.model_construct(query=query, ids=tuple(bundle.labels.ids(rows_K)), scores=tuple(scores_K))
        for query, rows_K, scores_K in zip(queries, ranking.rows_QK, scores_QK, strict=True)
    )
