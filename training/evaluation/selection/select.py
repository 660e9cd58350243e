"""Select the score mix, with the votes of the query memory, and the cone fraction on the validation queries.

All maximise the mean of the recipe's `validation.metrics`. One pass over all labels makes shortlists; every candidate
is measured on these.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.bundle.memory_labels import VoteSettings
from retrieval.system.progress import Progress, no_progress
from training.data.ragged import Ragged
from training.evaluation.imputation import CONE_FRACTIONS
from training.evaluation.memory import BlockVotes, QueryMemory
from training.evaluation.ranking import DEPTH, EXCLUDED_COSINE, ExactRanker, LabelRows
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix
from training.evaluation.selection.distractors import choose_originals, distractor_vectors, hidden_distractors
from training.evaluation.selection.grid import GridMetrics, rows_at
from training.evaluation.selection.shortlists import Shortlists, list_labels, list_voted, spanning_mixes
from training.recipe.sections import MemoryRecipe, ValidationRecipe

Grid = tuple[Sequence[float], Sequence[float]]  # candidates for weight and popularity bonus


@dataclass(frozen=True)
class ListRanker:
    """Rank the labels of shortlists, without another pass over all labels.

    `lists` are the shortlists at κ = 1, `cone_fraction` is the κ of the ranking.
    """

    lists: Shortlists
    cone_fraction: float
    votes: BlockVotes | None = None
    _vote_QS: dict[tuple[float, int], Tensor] = field(default_factory=dict)

    @cached_property
    def imputed(self) -> Shortlists:
        """Return the shortlists at this ranker's κ."""
        return self.lists.at(self.cone_fraction)

    def at(self, cone_fraction: float) -> "ListRanker":
        """Return this ranker with another cone fraction."""
        return dataclasses.replace(self, cone_fraction=cone_fraction)

    def scores(self, mix: ScoreMix) -> Tensor:
        """Return the scores of the listed labels [Q, S]; below EXCLUDED_COSINE / 2 where there is none.

        Raises ValueError if the mix has votes and the ranker has none.
        """
        scores_QS = self.imputed.scores(mix)
        if not mix.memory.weight:
            return scores_QS
        if self.votes is None:
            raise ValueError("a mix has votes, but there is no query memory")
        kind = (mix.memory.temperature, mix.memory.neighbours)
        if kind not in self._vote_QS:
            self._vote_QS[kind] = self.votes.of_rows(self.lists.row_QS, mix.memory)
        return torch.add(scores_QS, self._vote_QS[kind], alpha=mix.memory.weight)

    def with_votes(
        self,
        queries: QueryVectors,
        labels: LabelVectors,
        exclude: Ragged,
        memory: QueryMemory,
        kinds: Sequence[VoteSettings],
    ) -> "ListRanker":
        """Return this ranker with votes at any of the settings `kinds`, and with the labels that the memory proposes.

        `labels` must be imputed with κ = 1.
        """
        most = max(kind.neighbours for kind in kinds)
        votes = BlockVotes(memory.neighbours(queries, slice(None), most), memory.labels)
        widest = VoteSettings(1.0, max(kind.temperature for kind in kinds), most)
        lists = self.lists.merged(list_voted(queries, labels, exclude, votes, widest))
        return ListRanker(lists, self.cone_fraction, votes)

    def rank(
        self, mixes: Sequence[ScoreMix], allowed_L: NDArray[np.bool_] | None = None
    ) -> Mapping[ScoreMix, LabelRows]:
        """Return the best of the listed labels `allowed_L` (None: all) at each mix, as rows [Q, K]."""
        row_QS = self.lists.row_QS
        hidden_QS = torch.zeros_like(row_QS, dtype=torch.bool)
        if allowed_L is not None:
            hidden_QS = ~torch.from_numpy(allowed_L).to(row_QS.device)[row_QS.clamp(min=0)]
        return {mix: rows_at(row_QS, self.scores(mix).masked_fill(hidden_QS, EXCLUDED_COSINE)) for mix in mixes}


@dataclass(frozen=True)
class Selection:
    """The selected mix and cone fraction κ, their score in percent among distractors, and a ranker that uses them.

    `tuned` is the best mix at any weight, if the weight of `mix` is fixed.
    """

    mix: ScoreMix
    cone_fraction: float
    score: float
    ranker: ListRanker
    tuned: ScoreMix | None = None


def select(
    queries: QueryVectors,
    labels: LabelVectors,
    data: EvaluationData,
    grid: Grid,
    settings: ValidationRecipe,
    fixed_weight: float | None = None,
    memory: QueryMemory | None = None,
    votes: MemoryRecipe | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Selection:
    """Select the mix from the grid, then the votes for that mix, then the cone fraction.

    While the cone fraction is selected, there are `settings.distractors` never-correct untrained labels per trained
    label. The score that compares epochs is measured among them too: without them, it would mostly depend on κ.
    `labels` must be imputed with κ = 1; mix and votes are selected at the first of CONE_FRACTIONS. Weight 0 does not
    use popularity, so it is tried once. With a fixed weight, only the popularity bonus and the votes are selected for
    it, and the best mix without votes at any weight is returned too. `memory` does not contain the validation queries;
    `votes` has the candidates for its settings.
    """
    names = settings.metrics
    exclude, mixes = data.queries.exclude, spanning_mixes(max(grid[1]))
    lists = list_labels(queries, labels, exclude, mixes, progress=progress)
    ranker = ListRanker(lists, CONE_FRACTIONS[0])
    mix, score, tuned = choose_from_grid(ranker, data, names, grid, fixed_weight)
    if memory is not None and votes is not None:
        kinds = [VoteSettings(1.0, tau, count) for tau in votes.temperatures for count in votes.neighbours]
        ranker = ranker.with_votes(queries, labels, exclude, memory.with_half(mix.weight > 0), kinds)
        weights = () if fixed_weight is not None else grid[0]
        mix = choose_votes(ranker, (mix, score), data, names, (weights, grid[1]), votes)
    original_X = choose_originals(labels, data, settings.distractors, seed, lists.listed(len(labels.dual)))
    cone_fraction, score = choose_cone_fraction(ranker, queries, labels, mix, data, names, original_X)
    return Selection(mix, cone_fraction, score, ranker.at(cone_fraction), tuned)


def list_ranker(exact: ExactRanker, mix: ScoreMix, cone_fraction: float) -> ListRanker:
    """Return a ranker that ranks like `exact`, for mixes up to the bonus of `mix` and with its votes or none.

    `cone_fraction` is the κ of the labels of `exact`.
    """
    labels = exact.labels.with_imputation(1.0)
    lists = list_labels(exact.queries, labels, exact.exclude, spanning_mixes(mix.popularity))
    ranker = ListRanker(lists, cone_fraction)
    if exact.memory is None or not mix.memory.weight:
        return ranker
    return ranker.with_votes(exact.queries, labels, exact.exclude, exact.memory, [mix.memory])


def choose_from_grid(
    ranker: ListRanker, data: EvaluationData, names: Sequence[str], grid: Grid, fixed_weight: float | None = None
) -> tuple[ScoreMix, float, ScoreMix | None]:
    """Return the best mix and its score; with a fixed weight the best one at that weight, and the best at any."""
    weights, popularities = grid
    tried = weights if fixed_weight is None else sorted({*weights, fixed_weight})
    mixes = [ScoreMix(weight, bonus) for weight in tried for bonus in (popularities if weight else (0.0,))]
    metrics = GridMetrics(data, ranker.lists.row_QS, names)
    scores = {mix: metrics.mean(ranker.scores(mix)) for mix in mixes}
    best, score = choose_mix(scores)
    if fixed_weight is None:
        return best, score, None
    return *choose_mix({mix: score for mix, score in scores.items() if mix.weight == fixed_weight}), best


def choose_mix(scores: Mapping[ScoreMix, float]) -> tuple[ScoreMix, float]:
    """Return the mix with the highest score, and that score.

    Ties go to the weight nearest to 0.5, then to the smallest popularity bonus.
    """
    best = max(scores, key=lambda mix: (scores[mix], -abs(mix.weight - 0.5), -mix.popularity))
    return best, scores[best]


def choose_votes(
    ranker: ListRanker,
    best: tuple[ScoreMix, float],
    data: EvaluationData,
    names: Sequence[str],
    grid: Grid,
    votes: MemoryRecipe,
) -> ScoreMix:
    """Return the mix with the votes that raise the mean of the metrics most; the mix of `best` itself if none does.

    Votes favour frequent labels, as popularity does. So γ is chosen together with the popularity bonus, then the
    classifier weight, then temperature and number of neighbours. `best` is the mix without votes, and its mean.
    """
    weights, popularities = grid
    usual = VoteSettings(0.0, votes.temperatures[0], votes.neighbours[0])
    metrics = GridMetrics(data, ranker.lists.row_QS, names)

    def improved(best: tuple[ScoreMix, float], candidates: Sequence[ScoreMix]) -> tuple[ScoreMix, float]:
        scores = {mix: metrics.mean(ranker.scores(mix)) for mix in candidates}
        return max([best, *scores.items()], key=lambda scored: scored[1])  # the first one wins a tie

    mix = best[0]
    bonuses, other_weights = (popularities, [w for w in weights if w]) if mix.weight else ((0.0,), ())
    gammas = [usual._replace(weight=weight) for weight in votes.weights]
    best = improved(best, [mix._replace(popularity=bonus, memory=one) for one in gammas for bonus in bonuses])
    mix = best[0]
    if not mix.memory.weight:
        return mix
    best = improved(best, [mix._replace(weight=weight) for weight in other_weights])
    gamma = mix.memory.weight
    kinds = [VoteSettings(gamma, tau, count) for tau in votes.temperatures for count in votes.neighbours]
    return improved(best, [best[0]._replace(memory=kind) for kind in kinds])[0]


def choose_cone_fraction(
    ranker: ListRanker,
    queries: QueryVectors,
    labels: LabelVectors,
    mix: ScoreMix,
    data: EvaluationData,
    names: Sequence[str],
    original_X: NDArray[np.int64],
) -> tuple[float, float]:
    """Return the cone fraction with the highest mean of the metrics among the labels and copies of `original_X`.

    Also returns that mean. Ties go to the first candidate. Only that one is tried if the classifier has no weight or
    every label is trained.
    """
    untrained = len(labels.imputation.label_U) > 0
    fractions = CONE_FRACTIONS if mix.weight and untrained else CONE_FRACTIONS[:1]
    lists = ranker.lists
    if untrained and len(original_X):
        hidden = hidden_distractors(data, original_X)
        plain = [ScoreMix(mix.weight, 0.0)]  # a distractor has neither popularity nor votes
        listed = list_labels(queries, distractor_vectors(labels, original_X), hidden, plain, CONE_FRACTIONS, DEPTH)
        lists = lists.merged(listed, row_offset=len(labels.dual))
    metrics = GridMetrics(data, lists.row_QS, names)
    at_first = ListRanker(lists, CONE_FRACTIONS[0], ranker.votes)
    scores = {kappa: metrics.mean(at_first.at(kappa).scores(mix)) for kappa in fractions}
    return max(scores.items(), key=lambda scored: scored[1])
