"""Validate an epoch of a cascade: measure the metrics on the validation queries."""

import numpy as np
import torch
from torch import Tensor

from retrieval.system.progress import Progress, no_progress
from training.batching.training_data import TrainingData
from training.checkpoint.schema import EpochRecord
from training.evaluation.cascade.ranker import CASCADE_MIX, CASCADE_MIXES, cascade_ranker
from training.evaluation.headline import UNIFIED
from training.evaluation.results import EvaluationData, evaluate
from training.model.cascade import CascadeModel
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.divergence import require_finite_weights
from training.optim.step_stats import EpochStats
from training.recipe.schema import Recipe


class CascadeValidator:
    """Evaluates a cascade on the validation queries of `data`; there is nothing to select but the epoch."""

    def __init__(
        self,
        model: CascadeModel,
        data: TrainingData,
        recipe: Recipe,
        device: torch.device,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.model, self.data, self.recipe, self.device, self.processes = model, data, recipe, device, processes

    def validate(
        self, epoch: int, stats: EpochStats, seconds: float, progress: Progress = no_progress
    ) -> EpochRecord | None:
        """Return the record of an epoch (counted from 1) in rank zero, None in other processes.

        `seconds` is the training time so far. Raises TrainingError if the weights contain NaN or Inf.
        """
        require_finite_weights(self.model, epoch, self.processes)
        label_rows = self.processes.gather_rows(self.model.cascade.labels.weight, self.model.n_labels)
        record = None
        with self.processes.interruptible():
            if label_rows is not None:
                record = self._measure(label_rows, epoch, stats, seconds, progress)
        return record

    def _measure(
        self, label_rows: Tensor, epoch: int, stats: EpochStats, seconds: float, progress: Progress
    ) -> EpochRecord:
        data = EvaluationData(self.data.validation, self.data.positives_L, self.data.inverse_propensity_L)
        ranker = cascade_ranker(
            self.model, self.data.validation_tokens, data.queries.exclude, self.device, progress, label_rows
        )
        result = evaluate(ranker, data, CASCADE_MIXES)
        score = float(np.mean([result.metrics[UNIFIED][name] for name in self.recipe.validation.metrics]))
        return EpochRecord(
            epoch=epoch, loss=stats.loss, seconds=seconds, score=score, stats=stats,
            classifier_weight=CASCADE_MIX.weight, popularity=CASCADE_MIX.popularity, cone_fraction=1.0,
            metrics=dict(result.metrics), seen_metrics={} if result.seen is None else dict(result.seen.metrics),
        )  # fmt: skip
