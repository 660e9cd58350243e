"""Validate an epoch: select the score mix and cone fraction on the validation queries, and measure the metrics."""

import torch

from training.batching.training_data import TrainingData
from training.checkpoint.schema import EpochRecord
from training.evaluation.encoding import encode_labels, encode_queries
from training.evaluation.imputation import CONE_FRACTIONS
from training.evaluation.results import EvaluationData, evaluate
from training.evaluation.scoring import mixes_by_head
from training.evaluation.selection import select
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
        self.model.eval()
        data, settings = self.data, self.recipe.validation
        validation = EvaluationData(data.validation, data.positives_L, data.inverse_propensity_L)
        queries = encode_queries(self.model, data.validation_tokens, self.device)
        labels = encode_labels(
            self.model, data.label_tokens, data.positives_L, self.device, CONE_FRACTIONS[0], data.click_frequency_L
        )
        selection = select(
            queries, labels, validation, self.recipe.weights, settings.popularities, settings.metrics,
            self.recipe.fixed_weight,
        )  # fmt: skip
        result = evaluate(selection.ranker, validation, mixes_by_head(selection.mix, selection.tuned))
        return EpochRecord(
            epoch=epoch, loss=stats.loss, seconds=seconds, score=selection.score, stats=stats,
            classifier_weight=selection.mix.weight, popularity=selection.mix.popularity,
            cone_fraction=selection.cone_fraction, metrics=dict(result.metrics),
            seen_metrics={} if result.seen is None else dict(result.seen.metrics), tuned=selection.tuned,
        )  # fmt: skip
