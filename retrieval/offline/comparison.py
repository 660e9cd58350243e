"""Two bundles asked the same queries: how far their answers agree, what moved, which of them is better.

Labels are compared by id, since two bundles number them differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval import metrics
from retrieval.retriever import Hit, Retriever

KS = (1, 5, 10)


@dataclass(frozen=True)
class Moved:
    """One query's change: labels that left its answer and labels that entered, best first, and what stands first."""

    query: str
    left: tuple[str, ...]
    entered: tuple[str, ...]
    first: tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """How the answers of two bundles differ, over some queries.

    `overlap` is the mean share of the first k that both give, `same_first` and `same` the shares of queries with the
    same first label and with the same labels in the same order; `moved` are the queries that changed, most first.
    `figures` are percent by metric, of the one and of the other; None without truths.
    """

    names: tuple[str, str]
    queries: int
    k: int
    overlap: float
    same_first: float
    same: float
    moved: tuple[Moved, ...]
    figures: dict[str, tuple[float, float]] | None


def difference(
    one: Retriever, other: Retriever, queries: Sequence[str], truths: Sequence[Sequence[str]] | None, k: int = 10
) -> Difference:
    """Ask both bundles; `truths` are the true labels' ids of each query. Raises BadInput."""
    before, after = (asked.search(queries, k) for asked in (one, other))
    overlaps, moved = [], []
    for query, old, new in zip(queries, before, after, strict=True):
        change = _moved(query, old, new)
        overlaps.append(1 - len(change.left) / max(len(old), 1))
        moved.append(change)
    return Difference(
        names=(one.name, other.name),
        queries=len(queries),
        k=k,
        overlap=float(np.mean(overlaps)),
        same_first=float(np.mean([change.first[0] == change.first[1] for change in moved])),
        same=float(np.mean([_ids(old) == _ids(new) for old, new in zip(before, after, strict=True)])),
        moved=tuple(sorted((one for one in moved if one.left or one.entered), key=lambda one: -len(one.entered))),
        figures=None if truths is None else _figures(before, after, truths),
    )


def _moved(query: str, before: Sequence[Hit], after: Sequence[Hit]) -> Moved:
    old, new = set(_ids(before)), set(_ids(after))
    return Moved(
        query,
        left=tuple(hit.text for hit in before if hit.id not in new),
        entered=tuple(hit.text for hit in after if hit.id not in old),
        first=(before[0].text if before else "", after[0].text if after else ""),
    )


def _figures(
    before: Sequence[Sequence[Hit]], after: Sequence[Sequence[Hit]], truths: Sequence[Sequence[str]]
) -> dict[str, tuple[float, float]]:
    """P@k, nDCG@k and R@k of both; propensities stay with the training data, so there is no PSP."""
    number: dict[str, int] = {}
    truth = [np.array([number.setdefault(label, len(number)) for label in labels], np.int64) for labels in truths]
    each = [metrics.ratios(_rows(answers, number), truth, np.ones(len(number) + 1), KS) for answers in (before, after)]
    wanted = ("P@1", "P@5", "nDCG@5", "R@10")
    return {metric: (each[0][metric].percent, each[1][metric].percent) for metric in wanted}


def _rows(answers: Sequence[Sequence[Hit]], number: dict[str, int]) -> NDArray[np.int64]:
    """Answers by the numbers of the true labels; a label that is true nowhere counts as a miss: −1."""
    rows_QK = np.full((len(answers), max(KS)), -1, np.int64)
    for row_K, hits in zip(rows_QK, answers, strict=True):
        found = [number.get(hit.id, -1) for hit in hits[: max(KS)]]
        row_K[: len(found)] = found
    return rows_QK


def _ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]
