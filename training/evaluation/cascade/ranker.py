"""Rank labels by the index of a cascade, and measure how many true nodes its shortlists keep.

A label's score is its own times its parent's; the shortlists of the recipe apply, as they do in a service.

Shapes: Q queries, L labels, D width of a query vector, N nodes of a level, K ranks, S nodes of a shortlist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.progress import Progress, no_progress
from training.data.ragged import Ragged
from training.data.token_cache import TEXTS_PER_BATCH, TokenizedTexts
from training.evaluation.headline import UNIFIED
from training.evaluation.ranking import DEPTH, LabelRows
from training.evaluation.scoring import ScoreMix
from training.model.cascade import CascadeModel

CASCADE_MIX = ScoreMix(1.0, 0.0)  # a cascade is a classifier, without a popularity bonus
CASCADE_MIXES = {UNIFIED: CASCADE_MIX}


@dataclass(frozen=True)
class CascadeRanker:
    """Rank labels for the query vectors [Q, D] by the index of a cascade; `exclude` has each query's excluded labels.

    There is one ranking for every mix: a cascade has one score.
    """

    index: CascadeIndex
    query_QD: NDArray[np.float32]
    exclude: Ragged

    def rank(
        self, mixes: Sequence[ScoreMix], allowed_L: NDArray[np.bool_] | None = None
    ) -> Mapping[ScoreMix, LabelRows]:
        """Return the best of the labels `allowed_L` (None: all) as rows [Q, K], without excluded labels.

        −1 pads short rankings.
        """
        allowed = None if allowed_L is None else self.index.tree.among(allowed_L)
        spare = int(self.exclude.lengths.max(initial=0))
        ranked_QK, _ = self.index.rank(self.query_QD, DEPTH + spare, allowed)
        row_QK = without_excluded(ranked_QK, self.exclude)
        return dict.fromkeys(mixes, row_QK)

    def scores(self, row_QK: LabelRows, mix: ScoreMix) -> NDArray[np.float32]:
        """Return the scores [Q, K] of the labels `row_QK`; −∞ where the row is −1."""
        scores_QK = np.full(row_QK.shape, -np.inf, np.float32)
        for query, row_K in enumerate(row_QK):
            scores_QK[query, row_K >= 0] = self.index.score(self.query_QD[query], row_K[row_K >= 0])
        return scores_QK


def cascade_ranker(
    model: CascadeModel,
    tokens: TokenizedTexts,
    exclude: Ragged,
    device: torch.device,
    progress: Progress = no_progress,
    label_rows: torch.Tensor | None = None,
) -> CascadeRanker:
    """Encode the queries and build the index of the model's tree; `label_rows` as in `CascadeModel.level_rows`."""
    threads = ThreadPool(torch.get_num_threads())
    index = CascadeIndex.build(model.level_rows(label_rows), model.parents, model.shortlist, threads)
    return CascadeRanker(index, encode_cascade_queries(model, tokens, device, progress), exclude)


@torch.inference_mode()
def encode_cascade_queries(
    model: CascadeModel, tokens: TokenizedTexts, device: torch.device, progress: Progress = no_progress
) -> NDArray[np.float32]:
    """Return the query vectors [Q, D] of texts, in their order."""
    model.eval()
    query_QD, encoded = np.empty((len(tokens), sum(model.level_dims)), np.float32), 0
    for rows, batch in tokens.batches_by_length(TEXTS_PER_BATCH):
        batch = batch.to(device)
        query_QD[rows] = model.query_vectors(batch.input_ids_BT, batch.attention_mask_BT).cpu().numpy()
        encoded += len(rows)
        progress(encoded, len(tokens))
    return query_QD


def shortlist_recall(ranker: CascadeRanker, labels: Ragged) -> list[float]:
    """Return the share of the true nodes that a search scores further at each level, in percent; the labels last.

    The mean is over queries with a true label. For a level of clusters, the true nodes are those over a true label, and
    they are kept if they are in the shortlist. A true label is kept if its cluster is in the last shortlist.
    """
    parents, chosen = ranker.index.tree.parents, ranker.index.shortlists(ranker.query_QD)
    recalls: list[float] = []
    nodes = labels
    for level in range(len(chosen) - 1, -1, -1):
        above = Ragged(parents[level][nodes.values], nodes.offsets)
        if level == len(chosen) - 1:
            recalls.append(_recall(above, chosen[level]))
        nodes = above.without_repeats()
        recalls.insert(0, _recall(nodes, chosen[level]))
    return recalls


def without_excluded(row_QK: LabelRows, exclude: Ragged) -> LabelRows:
    """Return the first DEPTH rows of each query that are not excluded, −1 where there are fewer."""
    best_QK = np.full((len(row_QK), DEPTH), -1, np.int64)
    for query, row_K in enumerate(row_QK):
        allowed_K = row_K[~np.isin(row_K, exclude[query])][:DEPTH]
        best_QK[query, : len(allowed_K)] = allowed_K
    return best_QK


def _recall(true_Q: Ragged, node_QS: LabelRows) -> float:
    """Return the mean share of each query's true nodes that are kept, in percent."""
    shortlist = Ragged.from_lists([row_S[row_S >= 0] for row_S in node_QS])
    hit_V = true_Q.overlap(shortlist)
    hits_Q = np.bincount(true_Q.row_of_value, weights=hit_V, minlength=len(true_Q))
    scored_Q = true_Q.lengths > 0
    return 100.0 * float(np.mean(hits_Q[scored_Q] / true_Q.lengths[scored_Q]))
