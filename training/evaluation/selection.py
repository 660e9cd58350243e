"""Select the score mix, with the votes of the query memory, and the cone fraction on the validation queries.

All maximise the mean of the recipe's `validation.metrics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle.memory_labels import VoteSettings
from training.evaluation.distractors import choose_originals, queries_with_distractors, with_distractors
from training.evaluation.imputation import CONE_FRACTIONS
from training.evaluation.memory import QueryMemory
from training.evaluation.ranking import MEMORY_SHORTLIST_MIXES, SHORTLIST_MIXES, ExactRanker, LabelRows
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix
from training.recipe.sections import MemoryRecipe


@dataclass(frozen=True)
class Selection:
    """The selected mix and cone fraction κ, their score in percent, and a ranker that uses them.

    `tuned` is the best mix at any weight, if the weight of `mix` is fixed.
    """

    mix: ScoreMix
    cone_fraction: float
    score: float
    ranker: ExactRanker
    tuned: ScoreMix | None = None


def select(
    queries: QueryVectors,
    labels: LabelVectors,
    data: EvaluationData,
    weights: Sequence[float],
    popularities: Sequence[float],
    metric_names: Sequence[str],
    fixed_weight: float | None = None,
    distractors: float = 0.0,
    seed: int = 0,
    memory: QueryMemory | None = None,
    votes: MemoryRecipe | None = None,
) -> Selection:
    """Select the mix from a grid, then the votes for that mix, then the cone fraction.

    While the cone fraction is selected, there are `distractors` never-correct untrained labels per trained label.

    `labels` must be imputed with the first of CONE_FRACTIONS. Weight 0 does not use popularity, so it is tried once.
    With a fixed weight, only the popularity bonus and the votes are selected for it, and the best mix without votes at
    any weight is returned too. `memory` does not contain the validation queries; `votes` has the candidates for its
    settings.
    """
    exclude = data.queries.exclude
    tried = weights if fixed_weight is None else sorted({*weights, fixed_weight})
    grid = [ScoreMix(weight, bonus) for weight in tried for bonus in (popularities if weight else (0.0,))]
    rankings = ExactRanker(queries, labels, exclude, exact=SHORTLIST_MIXES).rank(grid)
    best, score = choose_mix(rankings, data, metric_names)
    mix, tuned = best, None
    if fixed_weight is not None:
        at_weight = {mix: rows for mix, rows in rankings.items() if mix.weight == fixed_weight}
        (mix, score), tuned = choose_mix(at_weight, data, metric_names), best
    if memory is not None and votes is not None:
        memory = memory.with_half(mix.weight > 0)
        voting = ExactRanker(queries, labels, exclude, MEMORY_SHORTLIST_MIXES, memory)
        grids = (weights if fixed_weight is None else (), popularities)
        mix = choose_votes(voting, (mix, score), data, metric_names, grids, votes)
    original_X = choose_originals(labels, data, distractors, seed)
    cone_fraction = choose_cone_fraction(queries, labels, mix, data, metric_names, original_X, memory)
    ranker = ExactRanker(queries, labels.with_imputation(cone_fraction), exclude, memory=memory)
    score = mean_metric(ranker.rank([mix])[mix], data, metric_names)
    return Selection(mix, cone_fraction, score, ranker, tuned)


def choose_mix(
    rankings: Mapping[ScoreMix, LabelRows], data: EvaluationData, metric_names: Sequence[str]
) -> tuple[ScoreMix, float]:
    """Return the mix with the highest mean of the metrics, and that mean.

    Ties go to the weight nearest to 0.5, then to the smallest popularity bonus.
    """
    scores = {mix: mean_metric(rows, data, metric_names) for mix, rows in rankings.items()}
    best = max(scores, key=lambda mix: (scores[mix], -abs(mix.weight - 0.5), -mix.popularity))
    return best, scores[best]


def choose_votes(
    ranker: ExactRanker,
    best: tuple[ScoreMix, float],
    data: EvaluationData,
    metric_names: Sequence[str],
    grids: tuple[Sequence[float], Sequence[float]],
    votes: MemoryRecipe,
) -> ScoreMix:
    """Return the mix with the votes that raise the mean of the metrics most; `best` itself if none does.

    Votes favour frequent labels, as popularity does. So γ is chosen together with the popularity bonus, then the
    classifier weight, then temperature and number of neighbours. `best` is the mix without votes, and its mean;
    `grids` are the candidates for weight and popularity bonus.
    """
    weights, popularities = grids
    usual = VoteSettings(0.0, votes.temperatures[0], votes.neighbours[0])

    def improved(best: tuple[ScoreMix, float], candidates: Sequence[ScoreMix]) -> tuple[ScoreMix, float]:
        scores = {mix: mean_metric(rows, data, metric_names) for mix, rows in ranker.rank(candidates).items()}
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
    queries: QueryVectors, labels: LabelVectors, mix: ScoreMix, data: EvaluationData, metric_names: Sequence[str],
    original_X: NDArray[np.int64], memory: QueryMemory | None = None,
) -> float:  # fmt: skip
    """Return the cone fraction with the highest mean of the metrics among the labels and copies of `original_X`.

    Ties go to the first candidate. None is tried if the classifier has no weight or every label is trained.
    """
    if mix.weight == 0 or not len(labels.imputation.label_U):
        return CONE_FRACTIONS[0]
    if len(original_X):
        labels, data = with_distractors(labels, original_X), queries_with_distractors(data, original_X)
    scores = {}
    for cone_fraction in CONE_FRACTIONS:
        # No name for the imputed labels: at most one copy of all classifier rows exists at a time.
        exclude = data.queries.exclude
        rankings = ExactRanker(queries, labels.with_imputation(cone_fraction), exclude, memory=memory).rank([mix])
        scores[cone_fraction] = mean_metric(rankings[mix], data, metric_names)
    return max(scores, key=lambda cone_fraction: scores[cone_fraction])


def mean_metric(row_QK: LabelRows, data: EvaluationData, metric_names: Sequence[str]) -> float:
    """Return the mean of the named metrics of one ranking, in percent."""
    values = data.metrics(row_QK)
    return float(np.mean([values[name] for name in metric_names]))
