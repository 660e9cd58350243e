"""A checkpoint against one split of its dataset, part by part: what `diptych evaluate` tells, without the console."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval import metrics
from retrieval.errors import CheckpointError
from retrieval.metrics import FloatArray, Ratio
from training.checkpoint.files import read_facts
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.data.dataset import Dataset, Split
from training.data.token_cache import tokenize_in_memory
from training.evaluation import scoring as evaluation
from training.evaluation import slices as analysis
from training.evaluation.scoring import Blend, Figures
from training.evaluation.slices import BoolArray, Example
from training.model.device import choose_device


class Part(NamedTuple):
    """What a figure is of: a head (`head`), a group of labels (`labels`) or of queries (`queries`), and its metric."""

    kind: str
    name: str
    metric: str


@dataclass(frozen=True, eq=False)
class Measurement:
    """One checkpoint's answers to the queries of a split that have a true label, and how good they are, in percent.

    ranking_QK and scores_QK are the unified model's; ratios hold every figure but C@k by query; counts_L are each
    label's training positives, groups its frequency groups.
    """

    checkpoint: Path
    dataset: Dataset
    split: str
    asked: Split
    blend: Blend
    propensity: tuple[float, float]
    inverse_propensity_L: FloatArray
    counts_L: NDArray[np.int64]
    groups: dict[str, BoolArray]
    figures: Figures
    ratios: dict[Part, Ratio]
    ranking_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]

    @property
    def dataset_name(self) -> str:
        """The prepared dataset's name."""
        return self.dataset.meta.name

    @property
    def queries(self) -> int:
        """How many queries were asked."""
        return len(self.asked)

    def examples(self, rows: NDArray[np.int64]) -> list[Example]:
        """The queries of these rows, with answers and scores beside the truth."""
        return [
            analysis.example(
                self.asked.texts[row],
                self.ranking_QK[row],
                self.asked.labels[int(row)],
                self.dataset.label_texts,
                self.counts_L,
                self.scores_QK[row],
            )
            for row in rows
        ]


def measure(
    checkpoint: Path,
    dataset: Dataset,
    split: str,
    weight: float | None = None,
    device: str = "auto",
    propensities_of: Measurement | None = None,
) -> Measurement:
    """Rank every label for every query of `split`; raises DatasetError, CheckpointError, RecipeError for the device.

    `weight` is the classifier's share of the score; None takes the one chosen on validation. `propensities_of` lends
    its propensities, so that two checkpoints with other constants can be compared.
    """
    asked = dataset.scored(split)
    require_trained_on(checkpoint, dataset)
    opened = load_checkpoint(checkpoint)
    blend = evaluation.Blend(opened.classifier_weight if weight is None else weight, opened.popularity)
    counts_L = np.bincount(dataset.split("train").labels.values, minlength=dataset.n_labels)
    rankings, scores_QK = _answers(opened, dataset, asked, blend, device)
    lent = propensities_of
    inverse_L = lent.inverse_propensity_L if lent else opened.inverse_propensity_L
    constants = opened.recipe.propensity
    groups = analysis.frequency_groups(counts_L)
    return Measurement(
        checkpoint=checkpoint,
        dataset=dataset,
        split=split,
        asked=asked,
        blend=blend,
        propensity=lent.propensity if lent else (constants.a, constants.b),
        inverse_propensity_L=inverse_L,
        counts_L=counts_L,
        groups=groups,
        figures={h: metrics.evaluate(ranking, asked.labels, inverse_L) for h, ranking in rankings.items()},
        ratios=_ratios(rankings, asked, groups, inverse_L),
        ranking_QK=rankings["unified"],
        scores_QK=scores_QK,
    )


def require_trained_on(checkpoint: Path, dataset: Dataset) -> None:
    """CheckpointError unless the checkpoint was trained on this dataset; takes no time, so ask before long work."""
    if read_facts(checkpoint).dataset_fingerprint != dataset.fingerprint:
        raise CheckpointError(
            f"{checkpoint} was trained on another dataset than {dataset.folder} (its label rows would not match). "
            "Give the dataset it was trained on, or train again."
        )


def _answers(
    opened: Checkpoint, dataset: Dataset, asked: Split, blend: Blend, device: str
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.float32]]:
    """Each head's ranking [Q, K], and the scores [Q, K] of the unified one."""
    chosen = choose_device(device)
    model = opened.model.to(chosen)
    queries = evaluation.encode_queries(model, tokenize_in_memory(asked.texts, opened.tokenizer), chosen)
    label_tokens = tokenize_in_memory(dataset.label_texts, opened.tokenizer)
    labels = evaluation.encode_labels(model, label_tokens, opened.positives_L, chosen, opened.cone_fraction)
    heads = evaluation.by_head(blend)
    exact = list(dict.fromkeys(heads.values()))
    rankings = evaluation.rank(queries, labels, exact, asked.exclude, searched=exact)
    scores_QK = evaluation.scores(queries, labels, rankings[blend], blend)
    return {head: rankings[at] for head, at in heads.items()}, scores_QK


def _ratios(
    rankings: dict[str, NDArray[np.int64]], asked: Split, groups: dict[str, BoolArray], inverse_L: FloatArray
) -> dict[Part, Ratio]:
    """Every figure by query: of each head, and of the unified model by label frequency and by query length."""
    unified_QK = rankings["unified"]
    named = {
        "head": {head: metrics.ratios(ranking, asked.labels, inverse_L) for head, ranking in rankings.items()},
        "labels": analysis.label_frequency_ratios(unified_QK, asked.labels, groups),
        "queries": analysis.query_length_ratios(unified_QK, asked.labels, asked.texts, inverse_L),
    }
    return {
        Part(kind, name, metric): ratio
        for kind, by_name in named.items()
        for name, of in by_name.items()
        for metric, ratio in of.items()
    }
