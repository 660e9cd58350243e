"""Compare the answers of two bundles to the same queries: agreement, changed queries, and metrics.

Labels are compared by id, since two bundles number them differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval import metrics
from retrieval.results import Hit
from retrieval.retriever import Retriever

KS = (1, 5, 10)
METRICS = ("P@1", "P@5", "nDCG@5", "R@10")


@dataclass(frozen=True)
class ChangedQuery:
    """The changes of one query: texts of removed and added labels, best first, and the first label of each bundle."""

    query: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    first: tuple[str, str]


@dataclass(frozen=True)
class BundleComparison:
    """The differences between the answers of two bundles to some queries.

    Attributes:
        overlap: mean share of the first k labels that both bundles return.
        same_first: share of queries with the same first label.
        same: share of queries with the same labels in the same order.
        changed: queries with removed or added labels, most changed first.
        metrics: percent by metric, of both bundles; None without true labels.
    """

    names: tuple[str, str]
    queries: int
    k: int
    overlap: float
    same_first: float
    same: float
    changed: tuple[ChangedQuery, ...]
    metrics: dict[str, tuple[float, float]] | None


def compare_bundles(
    old: Retriever, new: Retriever, queries: Sequence[str], truths: Sequence[Sequence[str]] | None, k: int = 10
) -> BundleComparison:
    """Search both bundles and compare the answers; `truths` are ids of each query's true labels. Raises BadInput."""
    before, after = (retriever.search(queries, k) for retriever in (old, new))
    changes = [_change(*answers) for answers in zip(queries, before, after, strict=True)]
    overlaps = [1 - len(change.removed) / max(len(hits), 1) for change, hits in zip(changes, before, strict=True)]
    return BundleComparison(
        names=(old.name, new.name),
        queries=len(queries),
        k=k,
        overlap=float(np.mean(overlaps)),
        same_first=float(np.mean([change.first[0] == change.first[1] for change in changes])),
        same=float(np.mean([_ids(hits) == _ids(others) for hits, others in zip(before, after, strict=True)])),
        changed=tuple(
            sorted((change for change in changes if change.removed or change.added), key=lambda one: -len(one.added))
        ),
        metrics=None if truths is None else _metrics(before, after, truths),
    )


def _change(query: str, before: Sequence[Hit], after: Sequence[Hit]) -> ChangedQuery:
    ids_before, ids_after = set(_ids(before)), set(_ids(after))
    return ChangedQuery(
        query,
        removed=tuple(hit.text for hit in before if hit.id not in ids_after),
        added=tuple(hit.text for hit in after if hit.id not in ids_before),
        first=(before[0].text if before else "", after[0].text if after else ""),
    )


def _metrics(
    before: Sequence[Sequence[Hit]], after: Sequence[Sequence[Hit]], truths: Sequence[Sequence[str]]
) -> dict[str, tuple[float, float]]:
    """Return P@k, nDCG@k and R@k of both. There is no PSP@k, since bundles do not contain propensities."""
    number: dict[str, int] = {}
    truth = [np.array([number.setdefault(label, len(number)) for label in labels], np.int64) for labels in truths]
    both = [metrics.ratios(_rows(answers, number), truth, np.ones(len(number) + 1), KS) for answers in (before, after)]
    return {metric: (both[0][metric].percent, both[1][metric].percent) for metric in METRICS}


def _rows(answers: Sequence[Sequence[Hit]], number: dict[str, int]) -> NDArray[np.int64]:
    """Return the answers as numbers of true labels; −1, a miss, for a label that is true for no query."""
    rows_QK = np.full((len(answers), max(KS)), -1, np.int64)
    for row_K, hits in zip(rows_QK, answers, strict=True):
        numbers = [number.get(hit.id, -1) for hit in hits[: max(KS)]]
        row_K[: len(numbers)] = numbers
    return rows_QK


def _ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]
