"""Select the score mix and the cone fraction on the validation queries.

Both maximise the mean of the recipe's `validation.metrics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.imputation import CONE_FRACTIONS
from training.evaluation.ranking import SHORTLIST_MIXES, ExactRanker, LabelRows
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix


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
) -> Selection:
    """Select the mix from a grid, then the cone fraction for that mix.

    `labels` must be imputed with the first of CONE_FRACTIONS. Weight 0 does not use popularity, so it is tried once.
    With a fixed weight, only the popularity bonus is selected for it, and the best mix at any weight is returned too.
    """
    exclude = data.queries.exclude
    tried = weights if fixed_weight is None else sorted({*weights, fixed_weight})
    grid = [ScoreMix(weight, bonus) for weight in tried for bonus in (popularities if weight else (0.0,))]
    rankings = ExactRanker(queries, labels, exclude, exact=SHORTLIST_MIXES).rank(grid)
    best, _ = choose_mix(rankings, data, metric_names)
    mix, tuned = best, None
    if fixed_weight is not None:
        at_weight = {mix: rows for mix, rows in rankings.items() if mix.weight == fixed_weight}
        mix, tuned = choose_mix(at_weight, data, metric_names)[0], best
    cone_fraction, score, labels = choose_cone_fraction(queries, labels, mix, data, metric_names)
    return Selection(mix, cone_fraction, score, ExactRanker(queries, labels, exclude), tuned)


def choose_mix(
    rankings: Mapping[ScoreMix, LabelRows], data: EvaluationData, metric_names: Sequence[str]
) -> tuple[ScoreMix, float]:
    """Return the mix with the highest mean of the metrics, and that mean.

    Ties go to the weight nearest to 0.5, then to the smallest popularity bonus.
    """
    scores = {mix: mean_metric(rows, data, metric_names) for mix, rows in rankings.items()}
    best = max(scores, key=lambda mix: (scores[mix], -abs(mix.weight - 0.5), -mix.popularity))
    return best, scores[best]


def choose_cone_fraction(
    queries: QueryVectors, labels: LabelVectors, mix: ScoreMix, data: EvaluationData, metric_names: Sequence[str]
) -> tuple[float, float, LabelVectors]:
    """Return the cone fraction with the highest mean of the metrics, that mean, and the labels imputed with it.

    Ties go to the first candidate. Only one is tried if the classifier has no weight or every label is trained.
    """
    matters = mix.weight > 0 and len(labels.imputation.label_U) > 0
    scores = {}
    for cone_fraction in CONE_FRACTIONS if matters else CONE_FRACTIONS[:1]:
        # No name for the imputed labels: at most one copy of all classifier rows exists at a time.
        rankings = ExactRanker(queries, labels.with_imputation(cone_fraction), data.queries.exclude).rank([mix])
        scores[cone_fraction] = mean_metric(rankings[mix], data, metric_names)
    best = max(scores, key=lambda cone_fraction: scores[cone_fraction])
    return best, scores[best], labels.with_imputation(best)


def mean_metric(row_QK: LabelRows, data: EvaluationData, metric_names: Sequence[str]) -> float:
    """Return the mean of the named metrics of one ranking, in percent."""
    values = data.metrics(row_QK)
    return float(np.mean([values[name] for name in metric_names]))
