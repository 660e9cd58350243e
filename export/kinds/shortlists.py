"""Gate "recall" of a cascade: choose the shortlists, and measure their recall against exact search.

Exact search is the target only if it is as good as the checkpoint, which ranks with shortlists: the rows of labels were
trained among the labels of the shortlists, and their scores for other queries may be too high.

Shapes: Q queries, K ranks, D width of a query vector.
"""

import numpy as np
from numpy.typing import NDArray

from export.index.recall import RECALL_TARGET, recall_at
from export.quality import Search, ValidationQueries, failed_metric
from retrieval.bundle.facts import LARGE_K, SMALL_K, CascadeFacts, CascadeLevel
from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.indexes import Vectors
from training.evaluation.cascade.ranker import CascadeRanker, shortlist_recall
from training.evaluation.results import MetricValues

TINY = 1e-300
RANKS = (1, SMALL_K, LARGE_K)


def choose_shortlists(
    index: CascadeIndex, query_QD: Vectors, validation: ValidationQueries, expected: MetricValues, max_loss: float
) -> CascadeFacts:
    """Widen the shortlists of `index` until recall@10 reaches the target; describe the levels and the recalls.

    They stay as they are if exact search is worse than the checkpoint's metrics `expected` by more than `max_loss`
    points. `query_QD` are the bundle's vectors of the validation queries.
    """
    exact = validation.metrics(search_of(index, query_QD, exact=True))
    recall, chosen = ExactRecall(index, query_QD), index
    exact_is_worse = failed_metric(expected, exact, validation.scored, max_loss) is not None
    if not exact_is_worse:
        while not _suffices(chosen, recall) and (wider := _widened(chosen)).shortlist != chosen.shortlist:
            chosen = wider
    recalls = recall.of(chosen)
    queries = validation.data.queries
    percents = shortlist_recall(CascadeRanker(chosen, query_QD, queries.exclude), queries.labels)
    return CascadeFacts(
        levels=tuple(
            CascadeLevel(nodes=nodes, dim=dim, shortlist=size, shortlist_recall=percent / 100)
            for nodes, dim, size, percent in zip(
                chosen.tree.sizes, chosen.dims, [*chosen.shortlist, None], percents, strict=True
            )
        ),
        checkpoint_shortlist=index.shortlist,
        recall_target=RECALL_TARGET,
        recall_queries=len(query_QD),
        recall_at_1=recalls[0],
        recall_at_10=recalls[1],
        recall_at_100=recalls[2],
        exact=exact,
        exact_is_worse=exact_is_worse,
    )


def search_of(index: CascadeIndex, query_QD: Vectors, *, exact: bool = False) -> Search:
    """Return a search for the validation queries, given their vectors."""
    return lambda weight, k: index.rank(query_QD, k, exact=exact)[0]


class ExactRecall:
    """Measure the recall of shortlists against exact search for some queries."""

    def __init__(self, index: CascadeIndex, query_QD: Vectors) -> None:
        self._query_QD = query_QD
        self._best_QK = _logarithms(index.rank(query_QD, LARGE_K, exact=True)[1])

    def of(self, index: CascadeIndex) -> list[float]:
        """Return the recall at the ranks RANKS."""
        small, large = self.at(index, SMALL_K, *RANKS[:-1]), self.at(index, LARGE_K, LARGE_K)
        return [*small, *large]

    def at(self, index: CascadeIndex, k: int, *ranks: int) -> list[float]:
        """Return the recall at some ranks when k labels are searched, since a larger k may widen the shortlists."""
        found_QK = _logarithms(index.rank(self._query_QD, k)[1])
        return [recall_at(rank, found_QK, self._best_QK) for rank in ranks]


def _suffices(index: CascadeIndex, recall: ExactRecall) -> bool:
    return recall.at(index, SMALL_K, SMALL_K)[0] >= RECALL_TARGET


def _widened(index: CascadeIndex) -> CascadeIndex:
    """Return the same index with shortlists twice as long, up to all nodes."""
    sizes = zip(index.shortlist, index.tree.sizes[:-1], strict=True)
    return index.with_shortlist([min(2 * size, nodes) for size, nodes in sizes])


def _logarithms(scores_QK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logarithms, so that `recall_at` compares probabilities by their ratio."""
    return np.log(np.maximum(scores_QK, TINY))
