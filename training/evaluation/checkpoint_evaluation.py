"""Evaluate a checkpoint on one split of its dataset.

Shapes: Q queries, L labels, K ranks.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.errors import CheckpointError
from retrieval.metrics import Ratio
from training.checkpoint.files import read_facts
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.clicks import label_ages, repeated_queries
from training.data.dataset import Dataset, Split
from training.data.token_cache import tokenize_in_memory
from training.evaluation.cascade.ranker import CASCADE_MIXES, CascadeRanker, cascade_ranker
from training.evaluation.encoding import encode_labels, encode_memory, encode_queries
from training.evaluation.headline import UNIFIED
from training.evaluation.memory import QueryMemory
from training.evaluation.ranking import ExactRanker
from training.evaluation.results import EvaluationData, EvaluationResult, MetricValues, SliceMetric, evaluate
from training.evaluation.scoring import ScoreMix, mixes_by_head
from training.evaluation.slices import Example
from training.model.cascade import CascadeModel
from training.model.device import choose_device


@dataclass(frozen=True, eq=False)
class CheckpointEvaluation:
    """The result of one checkpoint on the queries of a split that have a true label.

    `tuned` is the best mix on validation if the weight of `mix` is fixed. `scores_QK` are the scores of the unified
    ranking; `ratios` hold every metric but C@k per query; `propensity` are the constants A and B of PSP@k.
    """

    checkpoint: Path
    dataset: Dataset
    split: str
    mix: ScoreMix
    tuned: ScoreMix | None
    propensity: tuple[float, float]
    result: EvaluationResult
    scores_QK: NDArray[np.float32]
    ratios: dict[SliceMetric, Ratio]

    @property
    def metrics(self) -> dict[str, MetricValues]:
        """Return the metrics in percent by head."""
        return dict(self.result.metrics)

    def examples(self, query_rows: NDArray[np.int64]) -> list[Example]:
        """Return queries with their answers, scores and true labels."""
        return self.result.examples(query_rows, self.dataset.label_texts, self.scores_QK)


def evaluate_checkpoint(
    checkpoint: Path,
    dataset: Dataset,
    split: str,
    weight: float | None = None,
    device: str = "auto",
    propensities_of: CheckpointEvaluation | None = None,
    memory_weight: float | None = None,
) -> CheckpointEvaluation:
    """Rank all labels for every query of `split`, and compute the metrics of the unified model and of each head.

    `weight` is the classifier's weight, `memory_weight` that of the votes; None takes the one selected on validation.
    `propensities_of` supplies the propensities of another evaluation, so that two checkpoints with different constants
    can be compared. Raises DatasetError, CheckpointError, and RecipeError for the device.
    """
    queries = dataset.scored(split)
    require_same_dataset(checkpoint, dataset)
    opened = load_checkpoint(checkpoint)
    mix = selected_mix(opened)
    if weight not in (None, mix.weight) and opened.recipe.cascade is not None:
        raise CheckpointError(f"{checkpoint} has a cascade, which has no classifier weight. Leave out the weight.")
    if weight is not None:
        mix = mix._replace(weight=weight)
    if memory_weight is not None:
        if memory_weight and opened.memory is None:
            raise CheckpointError(f"{checkpoint} has no query memory. Leave out the memory weight, or set it to 0.")
        mix = mix._replace(memory=mix.memory._replace(weight=memory_weight))
    ranker = label_ranker(opened, queries, choose_device(device), in_memory=split == "train")
    reference, constants = propensities_of, opened.recipe.propensity
    positives_L = np.bincount(dataset.split("train").labels.values, minlength=dataset.n_labels)
    inverse_L = reference.result.data.inverse_propensity_L if reference else opened.inverse_propensity_L
    heads = checkpoint_heads(opened, mix)
    repeated_Q = None if split == "train" else repeated_queries(queries.texts, dataset.split("train").texts)
    data = EvaluationData(queries, positives_L, inverse_L, repeated_Q, label_ages(dataset, split))
    result = evaluate(ranker, data, heads)
    return CheckpointEvaluation(
        checkpoint=checkpoint,
        dataset=dataset,
        split=split,
        mix=mix,
        tuned=tuned_mix(opened),
        propensity=reference.propensity if reference else (constants.a, constants.b),
        result=result,
        scores_QK=ranker.scores(result.rankings[UNIFIED], mix),
        ratios=result.ratios(list(heads)),
    )


def label_ranker(
    opened: Checkpoint,
    queries: Split,
    device: torch.device,
    in_memory: bool = False,
) -> ExactRanker | CascadeRanker:
    """Return the ranker of a checkpoint of either kind; arguments as in `checkpoint_ranker`."""
    if isinstance(opened.model, CascadeModel):
        tokens = tokenize_in_memory(queries.texts, opened.tokenizer)
        return cascade_ranker(opened.model.to(device), tokens, queries.exclude, device)
    return checkpoint_ranker(opened, queries, device, in_memory)


def checkpoint_ranker(
    opened: Checkpoint,
    queries: Split,
    device: torch.device,
    in_memory: bool = False,
) -> ExactRanker:
    """Encode the queries, the checkpoint's labels and its query memory.

    in_memory: the queries are training queries, which must not vote for themselves. Raises CheckpointError for a
    cascade.
    """
    model = opened.unified.to(device)
    query_vectors = encode_queries(model, tokenize_in_memory(queries.texts, opened.tokenizer), device)
    label_tokens = tokenize_in_memory(opened.labels["text"].to_pylist(), opened.tokenizer)
    label_vectors = encode_labels(
        model, label_tokens, opened.positives_L, device, opened.cone_fraction, opened.label_frequency_L
    )
    memory = checkpoint_memory(opened, device)
    if memory is not None and in_memory:
        memory = dataclasses.replace(memory, own_row_Q=_own_rows(opened, queries))
    return ExactRanker(query_vectors, label_vectors, queries.exclude, memory)


def checkpoint_memory(opened: Checkpoint, device: torch.device) -> QueryMemory | None:
    """Encode the queries of the checkpoint's memory, with the half whose similarity was selected; None without one."""
    queries = opened.memory
    tokens = None if queries is None else tokenize_in_memory(queries.texts, opened.tokenizer)
    memory = encode_memory(opened.unified, queries, tokens, device)
    return None if memory is None else memory.with_half(opened.memory_by_classifier)


def _own_rows(opened: Checkpoint, queries: Split) -> NDArray[np.int64]:
    """Return the row of each query in the memory [Q]; −1 if it is not there."""
    row_of = {} if opened.memory is None else {id_: row for row, id_ in enumerate(opened.memory.ids)}
    return np.array([row_of.get(id_, -1) for id_ in queries.ids], np.int64)


def checkpoint_data(opened: Checkpoint) -> EvaluationData:
    """Return the validation queries that a checkpoint holds, for an evaluation."""
    return EvaluationData(
        opened.validation, opened.positives_L, opened.inverse_propensity_L, opened.repeated_Q, opened.label_age_L
    )


def selected_mix(opened: Checkpoint) -> ScoreMix:
    """Return the mix that was selected on the checkpoint's validation queries."""
    return ScoreMix(opened.classifier_weight, opened.facts.best.popularity, opened.facts.best.votes)


def checkpoint_heads(opened: Checkpoint, mix: ScoreMix) -> dict[str, ScoreMix]:
    """Return the named mixes to rank by: `mix` for the model, each head, and the tuned weight; of a cascade, one."""
    return CASCADE_MIXES if opened.recipe.cascade is not None else mixes_by_head(mix, tuned_mix(opened))


def tuned_mix(opened: Checkpoint) -> ScoreMix | None:
    """Return the best mix on the checkpoint's validation queries if its weight is fixed; else None."""
    tuned = opened.facts.best.tuned
    return None if tuned is None else ScoreMix(*tuned)


def require_same_dataset(checkpoint: Path, dataset: Dataset) -> None:
    """Raise CheckpointError unless the checkpoint was trained on this dataset. Fast, so call it before long work."""
    if read_facts(checkpoint).dataset_fingerprint != dataset.fingerprint:
        raise CheckpointError(
            f"{checkpoint} was trained on another dataset than {dataset.folder}, so its label rows do not match. "
            "Pass the dataset it was trained on, or train again."
        )
