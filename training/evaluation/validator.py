"""Validate an epoch: select the score mix and cone fraction on the validation queries, and measure the metrics."""

import torch

from retrieval.system.progress import Progress, no_progress
from training.batching.training_data import TrainingData
from training.checkpoint.schema import EpochRecord
from training.evaluation.encoding import EncodedLabels, encode_label_shard, encode_memory, encode_queries
from training.evaluation.results import EvaluationData, evaluate
from training.evaluation.scoring import mixes_by_head
from training.evaluation.selection.select import select
from training.model.unified import UnifiedModel
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.divergence import require_finite_weights
from training.optim.step_stats import EpochStats
from training.recipe.schema import Recipe


class Validator:
    """Evaluates `model` on the validation queries of `data`; each process encodes the texts of its labels."""

    def __init__(
        self,
        model: UnifiedModel,
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
        self.model.eval()
        data = self.data
        with self.processes.interruptible():
            shard = encode_label_shard(self.model, data.label_tokens, data.positives_L, self.device)
        encoded = shard.gathered(self.processes, self.model.n_labels)
        record = None
        with self.processes.interruptible():
            if encoded is not None:
                record = self._measure(encoded, epoch, stats, seconds, progress)
        return record

    def _measure(
        self, encoded: EncodedLabels, epoch: int, stats: EpochStats, seconds: float, progress: Progress
    ) -> EpochRecord:
        """Select classifier weight, popularity bonus, votes and κ, and measure the metrics."""
        data, settings = self.data, self.recipe.validation
        frequency_L = data.positives_L if data.click_frequency_L is None else data.click_frequency_L
        validation = EvaluationData(data.validation, data.positives_L, data.inverse_propensity_L)
        queries = encode_queries(self.model, data.validation_tokens, self.device)
        labels = encoded.label_vectors(frequency_L, self.device, 1.0)
        memory = encode_memory(self.model, data.memory, data.memory_tokens, self.device)
        grid = self.recipe.weights, settings.popularities
        selection = select(
            queries, labels, validation, grid, settings, self.recipe.fixed_weight, memory, self.recipe.memory,
            self.recipe.seed, progress,
        )  # fmt: skip
        tuned = selection.tuned
        result = evaluate(selection.ranker, validation, mixes_by_head(selection.mix, tuned))
        return EpochRecord(
            epoch=epoch, loss=stats.loss, seconds=seconds, score=selection.score, stats=stats,
            classifier_weight=selection.mix.weight, popularity=selection.mix.popularity,
            cone_fraction=selection.cone_fraction, metrics=dict(result.metrics),
            seen_metrics={} if result.seen is None else dict(result.seen.metrics),
            tuned=None if tuned is None else (tuned.weight, tuned.popularity),
            memory_weight=selection.mix.memory.weight, memory_temperature=selection.mix.memory.temperature,
            memory_neighbours=selection.mix.memory.neighbours,
        )  # fmt: skip
