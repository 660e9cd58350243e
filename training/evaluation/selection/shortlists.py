"""Shortlists: the labels that can be among the first answers of a query at any mix of the grid, with their cosines.

One pass over all labels finds them, so a grid of any size costs little more than one ranking. The best labels at a few
mixes, which span the grid, form a shortlist. Trained and untrained labels are listed separately: so rankings of the
seen labels are complete too, and untrained labels are listed at the least and the greatest cone fraction.

A classifier cosine of an untrained label is linear in the cone fraction κ (imputation.py):
⟨m − (1−κ)⟨m, c⟩c, x⟩ = ⟨m, x⟩ − (1−κ)·⟨m, c⟩⟨c, x⟩. A shortlist has ⟨m, x⟩ and ⟨m, c⟩⟨c, x⟩, so κ needs no other pass.

Shapes: Q queries, B queries of a block, L labels, U untrained labels, S labels of a shortlist (rows ascend; −1 at the
end of a shorter one), P pairs of a query and a label with a vote, D width of the vectors.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from retrieval.bundle.memory_labels import VoteSettings
from retrieval.system.progress import Progress, no_progress
from training.data.ragged import Ragged
from training.evaluation.imputation import CONE_FRACTIONS
from training.evaluation.memory import BlockVotes
from training.evaluation.ranking import EXCLUDED_COSINE, best_columns
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix

SIZE = 32  # labels per mix; the metrics use 10
VOTED = 160  # labels with a vote, the greatest votes first
PAIRS_PER_BLOCK = 1 << 13
SCORES_PER_BLOCK = 1 << 21  # 8 MB each for three matrices: larger ones do not fit into a processor's cache
MIN_QUERIES = 32  # per block of many labels; fewer would read all label vectors too often
NO_ROW = torch.iinfo(torch.int64).max  # sorts after all rows
SPANNING_FRACTIONS = (min(CONE_FRACTIONS), max(CONE_FRACTIONS))


@dataclass(frozen=True, eq=False)
class Shortlists:
    """Rows, cosines and popularity of the listed labels [Q, S]; EXCLUDED_COSINE where there is no label.

    `cone_QS` is ⟨m, c⟩⟨c, x⟩ for untrained labels, 0 for trained ones; `classifier_QS` is the cosine at κ = 1.
    """

    row_QS: Tensor
    dual_QS: Tensor
    classifier_QS: Tensor
    popularity_QS: Tensor
    cone_QS: Tensor

    def at(self, cone_fraction: float) -> "Shortlists":
        """Return these lists with the classifier cosines at κ = `cone_fraction`, which no other call may change."""
        classifier_QS = torch.add(self.classifier_QS, self.cone_QS, alpha=cone_fraction - 1)
        return dataclasses.replace(self, classifier_QS=classifier_QS)

    def scores(self, mix: ScoreMix) -> Tensor:
        """Return the scores without votes [Q, S]; below EXCLUDED_COSINE / 2 where there is no label."""
        return mix.combine(self.dual_QS, self.classifier_QS, self.popularity_QS)

    def listed(self, n_labels: int) -> NDArray[np.bool_]:
        """Return which labels [L] are listed for a query."""
        listed_L = np.zeros(n_labels, np.bool_)
        listed_L[self.row_QS[self.row_QS >= 0].cpu().numpy()] = True
        return listed_L

    def merged(self, other: "Shortlists", row_offset: int = 0) -> "Shortlists":
        """Return the labels of both, once each; `row_offset` is added to the rows of `other`."""
        other_QS = torch.where(other.row_QS < 0, other.row_QS, other.row_QS + row_offset)
        row_QS, kept_QS = _distinct(torch.cat([self.row_QS, other_QS], dim=1))
        values = zip(self._values(), other._values(), strict=True)
        return _padded(row_QS, *(torch.cat(pair, dim=1).gather(1, kept_QS) for pair in values))

    def _values(self) -> tuple[Tensor, ...]:
        return self.dual_QS, self.classifier_QS, self.popularity_QS, self.cone_QS


def spanning_mixes(highest_bonus: float) -> tuple[ScoreMix, ...]:
    """Return the mixes whose best labels are listed, for popularity bonuses up to `highest_bonus`."""
    plain = [(0.0, 0.0), (0.3, 0.0), (0.6, 0.0), (1.0, 0.0)]
    shares = [(0.4, 0.6), (0.7, 0.2), (0.6, 1.0), (1.0, 0.5), (1.0, 1.0)]
    bonuses = [(weight, share * highest_bonus) for weight, share in shares]
    return tuple(dict.fromkeys(ScoreMix(*mix) for mix in [*plain, *bonuses]))


@torch.inference_mode()
def list_labels(
    queries: QueryVectors,
    labels: LabelVectors,
    exclude: Ragged,
    mixes: Sequence[ScoreMix],
    cone_fractions: Sequence[float] = SPANNING_FRACTIONS,
    size: int = SIZE,
    progress: Progress = no_progress,
) -> Shortlists:
    """List the `size` best trained labels at each mix, and untrained ones at each mix and cone fraction.

    `labels` must be imputed with κ = 1. Excluded labels are not listed.
    """
    step, blocks = max(MIN_QUERIES, SCORES_PER_BLOCK // max(len(labels.dual), 1)), []
    scan = _Scan(labels, min(step, len(queries.dual)), mixes, cone_fractions, size)
    for start in range(0, len(queries.dual), step):
        block = slice(start, start + step)
        blocks.append(scan.list_block(queries.dual[block], queries.classifier[block], exclude[block]))
        progress(min(block.stop, len(queries.dual)), len(queries.dual))
    return _joined(blocks)


class _Scan:
    """Lists labels block by block. Its buffers for scores are reused, since fresh memory costs more than a product."""

    def __init__(
        self, labels: LabelVectors, step: int, mixes: Sequence[ScoreMix], cone_fractions: Sequence[float], size: int
    ) -> None:
        self.labels, self.mixes, self.cone_fractions, self.size = labels, mixes, cone_fractions, size
        n_labels, imputation = len(labels.dual), labels.imputation
        self.untrained_U = torch.from_numpy(imputation.label_U).to(labels.dual.device)
        self.along_L = labels.dual.new_zeros(n_labels)
        self.along_L[self.untrained_U] = imputation.mean_UC @ imputation.direction_C
        self.dual_BL, self.classifier_BL, self.scores_BL = (labels.dual.new_empty(step, n_labels) for _ in range(3))

    def list_block(self, dual_BD: Tensor, classifier_BD: Tensor, exclude: Ragged) -> Shortlists:
        n, labels = len(dual_BD), self.labels
        dual_BL = torch.mm(dual_BD, labels.dual.T, out=self.dual_BL[:n])
        classifier_BL = torch.mm(classifier_BD, labels.classifier.T, out=self.classifier_BL[:n])
        excluded = torch.from_numpy(exclude.row_of_value), torch.from_numpy(exclude.values.astype(np.int64))
        dual_BL[excluded] = classifier_BL[excluded] = EXCLUDED_COSINE
        cone_B1 = (classifier_BD @ labels.imputation.direction_C)[:, None]
        if len(self.untrained_U) == len(labels.dual):
            listed = self._best_untrained(dual_BL, classifier_BL, cone_B1)
        else:
            untrained_BU = dual_BL[:, self.untrained_U], classifier_BL[:, self.untrained_U]
            listed = [self.untrained_U[columns] for columns in self._best_untrained(*untrained_BU, cone_B1)]
            dual_BL[:, self.untrained_U] = classifier_BL[:, self.untrained_U] = EXCLUDED_COSINE
            listed += self._best(dual_BL, classifier_BL)
            dual_BL[:, self.untrained_U], classifier_BL[:, self.untrained_U] = untrained_BU
        row_BS = torch.cat(listed, dim=1)
        row_BS, _ = _distinct(row_BS.masked_fill(dual_BL.gather(1, row_BS) < EXCLUDED_COSINE / 2, -1))
        known_BS = row_BS.clamp(min=0)
        return _padded(
            row_BS, dual_BL.gather(1, known_BS), classifier_BL.gather(1, known_BS), labels.popularity[known_BS],
            self.along_L[known_BS] * cone_B1,
        )  # fmt: skip

    def _best(self, dual_BL: Tensor, classifier_BL: Tensor) -> list[Tensor]:
        out = self.scores_BL[: len(dual_BL)]
        return [
            best_columns(mix.combine(dual_BL, classifier_BL, self.labels.popularity, out=out), self.size)
            for mix in self.mixes
        ]

    def _best_untrained(self, dual_BU: Tensor, classifier_BU: Tensor, cone_B1: Tensor) -> list[Tensor]:
        if not len(self.untrained_U):
            return []
        popularity_U, cone_BU = self.labels.popularity[self.untrained_U], self.along_L[self.untrained_U] * cone_B1
        # Untrained labels are not popular, so mixes that differ only in the bonus list the same ones.
        mixes = self.mixes if popularity_U.any() else dict.fromkeys(mix._replace(popularity=0.0) for mix in self.mixes)
        tried = {(mix, fraction if mix.weight else 1.0): None for mix in mixes for fraction in self.cone_fractions}
        out = self.scores_BL[: len(dual_BU), : len(popularity_U)]
        columns = []
        for mix, fraction in tried:
            imputed_BU = (
                torch.add(classifier_BU, cone_BU, alpha=fraction - 1, out=out) if fraction < 1 else classifier_BU
            )
            columns.append(best_columns(mix.combine(dual_BU, imputed_BU, popularity_U, out=out), self.size))
        return columns


@torch.inference_mode()
def list_voted(
    queries: QueryVectors, labels: LabelVectors, exclude: Ragged, votes: BlockVotes, widest: VoteSettings
) -> Shortlists:
    """List the labels with the greatest votes at the settings `widest`. `labels` must be imputed with κ = 1."""
    cast = votes.cast(widest)
    n_labels, n_queries = len(labels.dual), len(queries.dual)
    allowed_P = ~np.isin(cast.query_P * n_labels + cast.label_P, exclude.keys(n_labels), kind="sort")
    order_P = np.lexsort((-cast.vote_P, cast.query_P))
    order_P = order_P[allowed_P[order_P]]
    query_P, label_P = cast.query_P[order_P], cast.label_P[order_P]
    rank_P = np.arange(len(query_P)) - np.searchsorted(query_P, query_P)
    first_P = rank_P < VOTED
    query_P, label_P, rank_P = query_P[first_P], label_P[first_P], rank_P[first_P]
    row_QS = np.full((n_queries, int(rank_P.max(initial=0)) + 1), -1, np.int64)
    row_QS[query_P, rank_P] = label_P
    row = torch.from_numpy(row_QS).sort(dim=1).values.to(labels.dual.device)
    return _with_cosines(queries, labels, row)


def _with_cosines(queries: QueryVectors, labels: LabelVectors, row_QS: Tensor) -> Shortlists:
    imputation, known_QS = labels.imputation, row_QS.clamp(min=0)
    along_L = labels.dual.new_zeros(len(labels.dual))
    along_L[torch.from_numpy(imputation.label_U).to(along_L.device)] = imputation.mean_UC @ imputation.direction_C
    dual_QS, classifier_QS = (
        torch.cat([
            torch.einsum("qd,qsd->qs", vectors_QD[at], rows_LD[known_QS[at]])
            for at in _blocks(len(known_QS), known_QS.shape[1])
        ])
        for vectors_QD, rows_LD in ((queries.dual, labels.dual), (queries.classifier, labels.classifier))
    )  # fmt: skip
    cone_Q1 = (queries.classifier @ imputation.direction_C)[:, None]
    return _padded(row_QS, dual_QS, classifier_QS, labels.popularity[known_QS], along_L[known_QS] * cone_Q1)


def _padded(
    row_QS: Tensor, dual_QS: Tensor, classifier_QS: Tensor, popularity_QS: Tensor, cone_QS: Tensor
) -> Shortlists:
    """Return lists whose values are those of no label where the row is −1."""
    none_QS = row_QS < 0
    return Shortlists(
        row_QS, dual_QS.masked_fill(none_QS, EXCLUDED_COSINE), classifier_QS.masked_fill(none_QS, EXCLUDED_COSINE),
        popularity_QS.masked_fill(none_QS, 0), cone_QS.masked_fill(none_QS, 0),
    )  # fmt: skip


def _blocks(n_queries: int, columns: int) -> list[slice]:
    size = max(1, PAIRS_PER_BLOCK // max(columns, 1))
    return [slice(start, start + size) for start in range(0, n_queries, size)]


def _distinct(row_BX: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of each query, ascending, −1 at the end; and the columns that they come from."""
    sorted_BX, column_BX = row_BX.masked_fill(row_BX < 0, NO_ROW).sort(dim=1)
    repeated_BX = F.pad(sorted_BX[:, 1:] == sorted_BX[:, :-1], (1, 0))
    sorted_BX, order_BX = sorted_BX.masked_fill(repeated_BX, NO_ROW).sort(dim=1)
    width = max(1, int((sorted_BX < NO_ROW).sum(dim=1).max()))
    sorted_BX, order_BX = sorted_BX[:, :width], order_BX[:, :width]
    return sorted_BX.masked_fill(sorted_BX == NO_ROW, -1), column_BX.gather(1, order_BX)


def _joined(blocks: Sequence[Shortlists]) -> Shortlists:
    width = max(block.row_QS.shape[1] for block in blocks)
    parts = zip(*((block.row_QS, *block._values()) for block in blocks), strict=True)
    row_QS, *values = (
        torch.cat([F.pad(part, (0, width - part.shape[1]), value=-1) for part in column]) for column in parts
    )
    return _padded(row_QS, *values)
