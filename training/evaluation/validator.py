"""Validate an epoch: select the search settings on the validation queries and measure the metrics of each head."""

import torch

from training.batching.training_data import TrainingData
from training.checkpoint.schema import EpochRecord
from training.evaluation import scoring
from training.evaluation.imputation import KEPT
from training.model.unified import UnifiedModel
from training.optim.divergence import require_finite_weights
from training.optim.step_stats import EpochStats
from training.recipe.schema import Recipe


class Validator:
    """Evaluates `model` on the validation queries of `data`."""

    def __init__(self, model: UnifiedModel, data: TrainingData, recipe: Recipe, device: torch.device) -> None:
        self.model, self.data, self.recipe, self.device = model, data, recipe, device

    def validate(self, epoch: int, stats: EpochStats, seconds: float) -> EpochRecord:
        """Return the record of an epoch (counted from 1) with the selected classifier weight, popularity bonus and κ.

        `seconds` is the training time so far. Raises TrainingError if the weights contain NaN or Inf.
        """
        require_finite_weights(self.model, epoch)
        data, settings = self.data, self.recipe.validation
        self.model.eval()
        queries = scoring.encode_queries(self.model, data.validation_tokens, self.device)
        labels = scoring.encode_labels(self.model, data.label_tokens, data.positives_L, self.device, KEPT[0])
        exclude, truth, inverse = data.validation.exclude, data.validation.labels, data.inverse_propensity_L
        candidates = [
            scoring.Blend(weight, bonus)
            for weight in self.recipe.weights
            for bonus in (settings.popularities if weight else (0.0,))
        ]
        rankings = scoring.rank(queries, labels, candidates, exclude)
        blend, _ = scoring.choose_blend(rankings, truth, inverse, settings.metrics)
        cone_fraction, score = scoring.choose_kept(queries, labels, blend, exclude, truth, inverse, settings.metrics)
        heads = list(scoring.by_head(blend).values())
        rankings = scoring.rank(queries, labels, heads, exclude, searched=heads)
        return EpochRecord(
            epoch=epoch, loss=stats.loss, seconds=seconds, score=score, stats=stats,
            classifier_weight=blend.weight, popularity=blend.popularity, cone_fraction=cone_fraction,
            metrics=scoring.figures_by_head(rankings, blend, truth, inverse),
        )  # fmt: skip
