"""Gate "quality": a bundle must answer the checkpoint's validation queries as well as the checkpoint does.

Metrics come from training.evaluation, as for `diptych evaluate`. Only the ranker differs: it searches with an index,
which does not know a query's excluded labels, so it fetches more results and drops them.

Shapes: Q queries, K ranks, D vector width, L labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.geometry import Cone, bias
from retrieval.bundle.facts import ModelFacts, Quality
from retrieval.errors import GateError
from retrieval.retriever import Retriever
from retrieval.search.indexes import ExactIndex, Vectors
from retrieval.search.memory import QueryMemory, add_votes
from retrieval.search.pca_index import rescore
from retrieval.system.progress import Progress, no_progress
from training.checkpoint.opened import Checkpoint
from training.data.token_cache import tokenize_in_memory
from training.evaluation.checkpoint_evaluation import checkpoint_data, selected_mix
from training.evaluation.encoding import encode_queries
from training.evaluation.headline import UNIFIED
from training.evaluation.ranking import LabelRows
from training.evaluation.results import EvaluationData, MetricValues, measure
from training.evaluation.scoring import ScoreMix

MAX_QUALITY_LOSS = 0.2  # points of P@1 and P@5 that a bundle may lose against its checkpoint
KS = (1, 5)
QUERIES_PER_BLOCK = 256
MAX_ANSWERS = 1_000  # per query, to fill a ranking of the allowed labels
CPU = torch.device("cpu")

Search = Callable[[float, int], LabelRows]  # (classifier weight, k): the best rows [Q, k] of all queries


@dataclass(frozen=True)
class SearchRanker:
    """Rank labels with a search that returns excluded labels too; `exclude` are each query's excluded rows."""

    search: Search
    exclude: Sequence[NDArray[np.integer[Any]]]
    depth: int = max(KS)

    def rank(
        self, mixes: Sequence[ScoreMix], allowed_L: NDArray[np.bool_] | None = None
    ) -> Mapping[ScoreMix, LabelRows]:
        """Return the best label rows [Q, depth] at each mix; the search itself adds the popularity bonus.

        Among the labels `allowed_L` (None: all), k is doubled until every ranking is full.
        """
        k = self.depth + max(len(rows) for rows in self.exclude)
        return {mix: self._rank_one(mix.weight, k, allowed_L) for mix in mixes}

    def _rank_one(self, weight: float, k: int, allowed_L: NDArray[np.bool_] | None) -> LabelRows:
        if allowed_L is None:
            return drop_excluded(self.search(weight, k), self.exclude, self.depth)
        hidden = np.flatnonzero(~allowed_L)
        exclude = [np.concatenate([rows, hidden]) for rows in self.exclude]
        while True:
            row_QK = self.search(weight, min(k, MAX_ANSWERS))
            remaining_QK = drop_excluded(row_QK, exclude, self.depth)
            if (remaining_QK >= 0).all() or k >= min(len(allowed_L), MAX_ANSWERS):
                return remaining_QK
            k *= 2


class ValidationQueries:
    """The validation queries of a checkpoint, and the metrics of any search for them at the selected mix."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.data: EvaluationData = checkpoint_data(checkpoint)
        self.texts = self.data.queries.texts
        self.scored = self.data.scored
        self._mix = selected_mix(checkpoint)
        self._exclude = [self.data.queries.exclude[row] for row in range(len(self.data.queries))]

    def metrics(self, search: Search) -> MetricValues:
        """Compute all metrics at the ranks KS, in percent."""
        ranker = SearchRanker(search, self._exclude)
        return dict(measure(ranker, self.data, {UNIFIED: self._mix}, KS).metrics[UNIFIED])

    def seen_metrics(self, search: Search) -> MetricValues | None:
        """Compute the same metrics among the labels with a training positive; None: see `EvaluationData.seen`."""
        if self.data.seen is None:
            return None
        ranker, allowed_L = SearchRanker(search, self._exclude), self.data.positives_L > 0
        return dict(measure(ranker, self.data.seen, {UNIFIED: self._mix}, KS, allowed_L).metrics[UNIFIED])

    def blocks(self, progress: Progress) -> Iterator[list[str]]:
        """Yield the texts in blocks."""
        for start in range(0, len(self.texts), QUERIES_PER_BLOCK):
            block = self.texts[start : start + QUERIES_PER_BLOCK]
            yield block
            progress(start + len(block), len(self.texts))


def checkpoint_quality(
    checkpoint: Checkpoint, facts: ModelFacts, cone: Cone, vectors_LD: Vectors, validation: ValidationQueries,
    progress: Progress = no_progress, memory: QueryMemory | None = None,
) -> MetricValues:  # fmt: skip
    """Compute the metrics of the checkpoint's own query vectors, by exact search among a bundle's label vectors.

    With the `memory` of the bundle, the votes of the exactly nearest training queries are added.
    """
    exact = ExactIndex(vectors_LD)

    def search(weight: float, k: int) -> LabelRows:
        scale_D, rows = facts.query_scale(weight), []
        for block in validation.blocks(progress):
            dual_QD, classifier_QC = torch_vectors(checkpoint, block)
            encoded_QD = np.concatenate([dual_QD, cone.invert(classifier_QC)], axis=1)
            query_QD = encoded_QD * scale_D
            rows_QK = exact.search(query_QD, k)[0]
            if memory is not None:
                scored, votes = (
                    rescore(query_QD, rows_QK, vectors_LD, facts.dual_dim, k),
                    memory.votes(memory.neighbours(encoded_QD, ef_search=None)),
                )
                rows_QK = add_votes(scored, votes, memory.facts.weight, query_QD, vectors_LD, facts.dual_dim).rows_QK
            rows.append(rows_QK)
        return np.concatenate(rows)

    return validation.metrics(search)


def bundle_quality(
    retriever: Retriever, validation: ValidationQueries, progress: Progress = no_progress
) -> tuple[MetricValues, MetricValues | None]:
    """Compute the metrics of a bundle's answers, end to end: for all labels, and among the seen ones."""

    def search(weight: float, k: int) -> LabelRows:
        blocks = validation.blocks(progress)
        return np.concatenate([retriever.search_rows(block, k, weight=weight).rows_QK for block in blocks])

    return validation.metrics(search), validation.seen_metrics(search)


def check_quality(quality: Quality, max_loss: float = MAX_QUALITY_LOSS) -> None:
    """Raise GateError if the bundle's P@1 or P@5 is more than `max_loss` points below the checkpoint's."""
    if metric := failed_metric(quality.checkpoint, quality.bundle, quality.queries, max_loss):
        raise GateError(
            f"quality: {metric} of the bundle is {quality.bundle[metric]:.2f}, {metric} of the checkpoint "
            f"{quality.checkpoint[metric]:.2f}, over {quality.queries} validation queries; at most {max_loss} points "
            "less is allowed. Raise --m or --ef-construction."
        )


def failed_metric(checkpoint: MetricValues, bundle: MetricValues, queries: int, max_loss: float) -> str | None:
    """Return "P@1" or "P@5" if it is lower by more than `max_loss` points, None if neither is.

    One hit is always tolerated: over a few hundred queries it changes the metric by more than that.
    """
    for k in KS:
        if checkpoint[f"P@{k}"] - bundle[f"P@{k}"] > max(max_loss, 100 / (k * queries)) + 1e-9:
            return f"P@{k}"
    return None


def torch_vectors(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[Vectors, Vectors]:
    """Encode queries with the checkpoint: dual vectors, and classifier vectors with the bias appended."""
    vectors = encode_queries(checkpoint.unified, tokenize_in_memory(texts, checkpoint.tokenizer), CPU)
    bias_width = 1 if checkpoint.unified.classifier_dim else 0
    bias_Q1 = np.full((len(texts), bias_width), bias(checkpoint), np.float32)
    return vectors.dual.numpy(), np.concatenate([vectors.classifier.numpy(), bias_Q1], axis=1)


def drop_excluded(row_QK: LabelRows, exclude: Sequence[NDArray[np.integer[Any]]], k: int) -> LabelRows:
    """Return the first k rows of each query that are not excluded; −1 pads the rest."""
    remaining_QK = np.full((len(row_QK), k), -1, np.int64)
    for query, (row_K, excluded) in enumerate(zip(row_QK, exclude, strict=True)):
        remaining = row_K[~np.isin(row_K, excluded)][:k]
        remaining_QK[query, : len(remaining)] = remaining
    return remaining_QK
