"""Golden answers: what a bundle answered when it was built, so that a copy of it can prove itself anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.bundle.index_file import Buffer
from retrieval.bundle.manifest import GOLDEN, Share, first_fault
from retrieval.errors import BadInput, BundleError, one_line
from retrieval.system.safe_open import read_file

if TYPE_CHECKING:
    from retrieval.retriever import Ranking, Retriever

K = 10


class GoldenAnswer(BaseModel):
    """One query's answer: label ids, best first, and their scores."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    query: str
    ids: Annotated[tuple[str, ...], Field(max_length=K)]
    scores: tuple[float, ...]

    @model_validator(mode="after")
    def _a_score_for_each_label(self) -> Self:
        if len(self.ids) != len(self.scores):
            raise ValueError(f"{len(self.ids)} labels have {len(self.scores)} scores")
        return self


class Golden(BaseModel):
    """golden.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: Share
    answers: tuple[GoldenAnswer, ...]


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """How today's answers compare with the golden ones; the deviation is the greatest over labels found both times."""

    queries: int
    overlap_at_10: float
    score_deviation: float
    passed: bool

    def __str__(self) -> str:
        return (
            f"{self.queries} golden queries, overlap@10 {self.overlap_at_10:.3f}, "
            f"greatest deviation of a score {self.score_deviation:.1e}"
        )


def record_golden(retriever: "Retriever", queries: Sequence[str]) -> Golden:
    """The retriever's own answers to some queries."""
    weight = retriever.manifest.classifier_weight
    ranking = retriever.search_rows(queries, K, weight=weight)
    return Golden(weight=weight, answers=_answers(retriever, queries, ranking))


def write_golden(folder: Path, golden: Golden) -> None:
    """Write golden.json."""
    (folder / GOLDEN).write_text(golden.model_dump_json(indent=1), encoding="utf-8")


def read_golden(folder: Path) -> Golden:
    """Read golden.json; raises BundleError."""
    return parse_golden(read_file(folder / GOLDEN), folder / GOLDEN)


def parse_golden(content: Buffer, path: Path) -> Golden:
    """Parse the bytes of a golden.json, named `path` in errors. Raises BundleError."""
    try:
        return Golden.model_validate_json(bytes(content))
    except ValidationError as error:
        raise BundleError(
            f"{path} does not hold golden answers ({first_fault(error)}). Export the bundle again."
        ) from error


def check_golden(retriever: "Retriever") -> GoldenReport:
    """Ask the golden queries again; `passed` says whether the manifest's tolerances are met."""
    path, facts = retriever.folder / GOLDEN, retriever.manifest.golden
    golden = parse_golden(retriever.golden, path)
    queries = [answer.query for answer in golden.answers]
    if len(queries) != facts.queries:
        raise BundleError(f"{path} holds {len(queries)} answers, the manifest {facts.queries}. Export it again.")
    try:
        ranking = retriever.search_rows(queries, K, weight=golden.weight, with_paused=True)
    except BadInput as error:
        raise BundleError(f"{path} cannot be asked ({one_line(error)}). Export the bundle again.") from error
    overlaps, deviations = [], [0.0]
    for before, now in zip(golden.answers, _answers(retriever, queries, ranking), strict=True):
        expected, found = (dict(zip(one.ids, one.scores, strict=True)) for one in (before, now))
        common = expected.keys() & found.keys()
        overlaps.append(len(common) / max(len(expected), 1))
        deviations += [abs(expected[label] - found[label]) for label in common]
    overlap = float(np.mean(overlaps)) if overlaps else 1.0
    deviation = float(np.max(deviations))  # NaN where a score is none, which passes no comparison
    passed = overlap >= facts.overlap_at_10 and deviation <= facts.score_tolerance
    return GoldenReport(len(overlaps), overlap, deviation, passed)


def _answers(retriever: "Retriever", queries: Sequence[str], ranking: "Ranking") -> tuple[GoldenAnswer, ...]:
    return tuple(
        GoldenAnswer.model_construct(query=query, ids=tuple(retriever.labels.ids(rows_K)), scores=tuple(scores_K))
        for query, rows_K, scores_K in zip(queries, ranking.rows_QK, ranking.scores_QK.tolist(), strict=True)
    )
