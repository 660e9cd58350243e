"""`diptych evaluate` without the console: a checkpoint against one split of its dataset."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.errors import CheckpointError, DatasetError
from training import evaluation
from training.checkpoint import load_checkpoint
from training.data.dataset import SPLITS, Dataset
from training.evaluation import Figures
from training.optimization import choose_device
from training.tokens import tokenize_in_memory


@dataclass(frozen=True)
class Measurement:
    """Figures in percent, and what the unified model adds to each head with its paired interval, by k."""

    dataset_name: str
    queries: int
    weight: float
    propensity: tuple[float, float]
    figures: Figures
    gaps: dict[int, dict[str, tuple[float, float, float]]]


def measure(
    checkpoint: Path, dataset: Dataset, split: str, weight: float | None = None, device: str = "auto"
) -> Measurement:
    """Rank every label for every query of `split`; raises DatasetError, CheckpointError, RecipeError for the device.

    `weight` is the classifier's share of the score; None takes the one chosen on validation. A gap's interval needs two
    queries.
    """
    if split not in SPLITS:
        raise DatasetError(f"there is no split '{split}'. Choose one of {', '.join(SPLITS)}.")
    opened = load_checkpoint(checkpoint)
    if opened.dataset_fingerprint != dataset.fingerprint:
        raise CheckpointError(
            f"{checkpoint} was trained on another dataset than {dataset.folder} (its label rows would not match). "
            "Give the dataset it was trained on, or train again."
        )
    asked = dataset.split(split)
    asked = asked.take(np.flatnonzero(asked.labels.lengths > 0))
    if not len(asked):
        raise DatasetError(f"{dataset.folder}: the split '{split}' has no query with a true label to measure on.")
    chosen = choose_device(device)
    model = opened.model.to(chosen)
    queries = evaluation.encode_queries(model, tokenize_in_memory(asked.texts, opened.tokenizer), chosen)
    label_tokens = tokenize_in_memory(dataset.label_texts, opened.tokenizer)
    labels = evaluation.encode_labels(model, label_tokens, opened.trained_L, chosen)
    at = opened.classifier_weight if weight is None else weight
    weights = sorted({0.0, at, 1.0})
    rankings = evaluation.rank(queries, labels, weights, asked.exclude, searched=weights)
    constants = opened.recipe.propensity
    return Measurement(
        dataset_name=dataset.meta.name,
        queries=len(asked),
        weight=at,
        propensity=(constants.a, constants.b),
        figures=evaluation.figures_by_head(rankings, at, asked.labels, opened.inverse_propensity_L),
        gaps={k: evaluation.gaps(rankings, at, asked.labels, k) for k in (1, 5) if len(asked) > 1},
    )
