"""An opened checkpoint: the model of the best epoch, and the data that export and evaluation need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from retrieval.errors import BundleError, CheckpointError
from retrieval.search.label_tree import LabelTree
from training.checkpoint.files import REPEATED, read_facts, read_parquet, read_record, read_tokenizer
from training.checkpoint.schema import (
    CHECKPOINT,
    ENCODER,
    LABELS,
    MEMORY,
    TOKENIZER,
    VALIDATION,
    WEIGHTS,
    CheckpointFacts,
    MetricsByHead,
)
from training.checkpoint.tensor_file import read_tensors
from training.checkpoint.weights import load_weights
from training.data.dataset import Split
from training.data.token_cache import TextTokenizer, special_ids
from training.model.cascade import CascadeModel, Model, cascade_skeleton
from training.model.unified import UnifiedModel, model_skeleton
from training.recipe.schema import Recipe


@dataclass(frozen=True)
class Checkpoint:
    """The best epoch's model, on the CPU in evaluation mode, with labels, validation queries and tokenizer.

    `positives_L` are training positives per label; `trained_L` marks the labels whose classifier row was trained. The
    last four are those of TrainingData, None if it has none.
    """

    folder: Path
    facts: CheckpointFacts
    model: Model
    labels: pa.Table
    validation: Split
    trained_L: NDArray[np.bool_]
    positives_L: NDArray[np.int64]
    inverse_propensity_L: NDArray[np.float64]
    tokenizer: TextTokenizer
    click_frequency_L: NDArray[np.float64] | None = None
    repeated_Q: NDArray[np.bool_] | None = None
    label_age_L: NDArray[np.float32] | None = None
    memory: Split | None = None

    @property
    def unified(self) -> UnifiedModel:
        """The model, which has a dual encoder or a classifier on vectors. Raises CheckpointError for a cascade."""
        if not isinstance(self.model, UnifiedModel):
            raise CheckpointError(f"{self.folder} has a cascade, which this command does not support")
        return self.model

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.facts.recipe

    @property
    def label_frequency_L(self) -> NDArray[Any]:
        """Numbers of positives or sums of their weights, from which popularity is computed."""
        return self.positives_L if self.click_frequency_L is None else self.click_frequency_L

    @property
    def encoder_kind(self) -> str:
        """`static` or `transformer`."""
        return self.recipe.encoder.kind

    @property
    def tokenizer_path(self) -> Path:
        """tokenizer.json, with truncation and without padding."""
        return self.folder / TOKENIZER

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return special_ids(self.tokenizer.tokenizer)[0]

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens per text."""
        return self.recipe.encoder.max_tokens

    @property
    def classifier_weight(self) -> float:
        """w, the classifier's share of the score, selected on validation."""
        return self.facts.classifier_weight

    @property
    def popularity(self) -> float:
        """The popularity bonus, selected on validation."""
        return self.facts.best.popularity

    @property
    def cone_fraction(self) -> float:
        """κ of the classifier rows of untrained labels, selected on validation."""
        return self.facts.best.cone_fraction

    @property
    def memory_by_classifier(self) -> bool:
        """Whether the memory's similarity is that of the classifier vectors; else of the dual vectors."""
        return self.classifier_weight > 0

    @property
    def dataset_name(self) -> str:
        """Name of the dataset."""
        return self.facts.dataset_name

    @property
    def dataset_fingerprint(self) -> str:
        """Content hash of the dataset."""
        return self.facts.dataset_fingerprint

    @property
    def metrics(self) -> MetricsByHead:
        """Validation metrics of the best epoch, in percent."""
        return self.facts.best.metrics


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Open a checkpoint. Raises CheckpointError if a file is missing, damaged or belongs to another run."""
    folder = Path(folder)
    facts = read_facts(folder)
    tensors, _ = read_tensors(folder / WEIGHTS)
    _require_epoch(folder, facts)
    model = _skeleton(folder, facts)
    trained_L = tensors.pop("trained").numpy().astype(bool)
    positives_L = tensors.pop("positives").numpy().copy()  # a view would keep the whole file mapped
    inverse_propensity_L = tensors.pop("inverse_propensity").numpy().copy()
    click_frequency_L, label_age_L = (_optional(tensors, name) for name in ("frequency", "age"))
    load_weights(model, tensors, folder / WEIGHTS)
    if isinstance(model, UnifiedModel):
        model.adds_text = False  # the file has ψ, not residuals
    else:
        _require_tree(folder, model)
    labels = read_parquet(folder / LABELS)
    if {labels.num_rows, len(trained_L), len(positives_L), len(inverse_propensity_L)} != {facts.n_labels}:
        raise CheckpointError(
            f"{folder} has files of different runs: {LABELS} has {labels.num_rows} labels, {CHECKPOINT} "
            f"{facts.n_labels}, {WEIGHTS} {len(trained_L)}. Copy the whole folder again, or train again."
        )
    validation = read_parquet(folder / VALIDATION)
    return Checkpoint(
        folder=folder,
        facts=facts,
        model=model.eval(),
        labels=labels,
        validation=Split.from_table(validation, excluded_may_be_true=True),  # as it was trained with
        trained_L=trained_L,
        positives_L=positives_L,
        inverse_propensity_L=inverse_propensity_L,
        tokenizer=TextTokenizer(read_tokenizer(folder / TOKENIZER), facts.query_identity),
        click_frequency_L=click_frequency_L,
        repeated_Q=np.asarray(validation[REPEATED]) if REPEATED in validation.column_names else None,
        label_age_L=label_age_L,
        memory=_read_memory(folder, facts),
    )


def _skeleton(folder: Path, facts: CheckpointFacts) -> Model:
    if facts.recipe.cascade is not None:
        return cascade_skeleton(facts.recipe, facts.n_labels, folder / ENCODER)
    return model_skeleton(facts.recipe, facts.n_labels, facts.vocabulary, folder / ENCODER)


def _require_tree(folder: Path, model: CascadeModel) -> None:
    """Raise CheckpointError unless the parents of a cascade are a tree."""
    try:
        LabelTree.of(model.parents, len(model.cascade.bias[0]))
    except BundleError as error:
        reason = str(error).removesuffix(" Export the bundle again.")
        raise CheckpointError(f"{folder / WEIGHTS}: {reason} Copy the whole folder again, or train again.") from error


def _read_memory(folder: Path, facts: CheckpointFacts) -> Split | None:
    """Return the queries of the memory; None without votes. Raises CheckpointError for an unknown label."""
    if not facts.best.memory_weight:
        return None
    memory = Split.from_table(read_parquet(folder / MEMORY))
    label_V = memory.labels.values
    if not len(label_V) or int(label_V.max()) >= facts.n_labels or int(label_V.min()) < 0:
        raise CheckpointError(
            f"{folder / MEMORY} has no queries, or labels that {LABELS} does not have. Copy the whole folder again, or "
            "train again."
        )
    return memory


def _optional(tensors: dict[str, Tensor], name: str) -> NDArray[Any] | None:
    return tensors.pop(name).numpy().copy() if name in tensors else None


def _require_epoch(folder: Path, facts: CheckpointFacts) -> None:
    """Raise CheckpointError if the weights belong to another epoch than checkpoint.json says."""
    record = read_record(folder / WEIGHTS)
    if record is not None and record.epoch != facts.best.epoch:
        raise CheckpointError(
            f"{folder / WEIGHTS} has the weights of epoch {record.epoch}, but {CHECKPOINT} describes epoch "
            f"{facts.best.epoch}. Copy the whole folder again, or train again with --restart."
        )
