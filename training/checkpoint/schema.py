"""Contract 2, the checkpoint: a folder with everything for export, warm start and exact resume.

    checkpoint.json            recipe, dataset fingerprint, classifier weight, metrics, history
    model.safetensors          weights of the best epoch, trained labels, positives per label, propensities;
                               header: the record of that epoch. Of a cascade: cascade.rows.R and cascade.bias.R per
                               level of clusters, cascade.labels.weight (the bias last), cascade.parent.R per level but
                               the first
    tokenizer.json             including truncation
    encoder/config.json        shape of a transformer
    labels.parquet             id, text, attributes
    validation.parquet         up to 2,000 validation queries with true and excluded labels
    memory.parquet             training queries of the query memory with their labels, if there is one
    state.safetensors          state to resume from: weights, optimizers, clusters, hard negatives, position in the run
    run.json                   recipe and dataset of the run in this folder

safetensors and JSON only, no pickle. Every file is replaced atomically. The state is one file, so its parts belong
together.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from retrieval.bundle.memory_labels import NO_VOTES, VoteSettings
from retrieval.query_text import QueryIdentity
from training.optim.step_stats import EpochStats
from training.recipe.schema import Recipe

FORMAT_VERSION: Literal[3] = 3
CHECKPOINT, WEIGHTS, STATE, RUN = "checkpoint.json", "model.safetensors", "state.safetensors", "run.json"
TOKENIZER, LABELS, VALIDATION, ENCODER = "tokenizer.json", "labels.parquet", "validation.parquet", "encoder"
MEMORY = "memory.parquet"

MetricsByHead = dict[str, dict[str, float]]  # percent, by head (unified, dual_encoder, classifier) and metric


class EpochRecord(BaseModel):
    """A validated epoch: statistics of its steps, metrics, and the search settings selected on validation.

    `score` is the mean of the recipe's validation metrics among distractors. `popularity` is the popularity bonus.
    `cone_fraction` (κ) applies to the classifier rows of untrained labels. `seen_metrics` are the metrics among the
    labels with a training positive, empty if all have one. With a fixed weight, `tuned` is the weight and the
    popularity bonus that are best on validation. `votes` are the settings of the query memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float
    seconds: float
    score: float
    classifier_weight: float
    popularity: float
    cone_fraction: float
    metrics: MetricsByHead
    seen_metrics: MetricsByHead = {}
    tuned: tuple[float, float] | None = None
    stats: EpochStats
    memory_weight: float = NO_VOTES.weight
    memory_temperature: float = NO_VOTES.temperature
    memory_neighbours: int = NO_VOTES.neighbours

    @property
    def votes(self) -> VoteSettings:
        """Return γ, τ and the number of neighbours."""
        return VoteSettings(self.memory_weight, self.memory_temperature, self.memory_neighbours)


class RunPosition(BaseModel):
    """Position of a run: its next step, the statistics of the current epoch, the best epoch and all validated epochs.

    `seconds` is the training time so far, without validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = 0
    step: int = 0
    steps_taken: int = 0
    stats: EpochStats = EpochStats()
    seconds: float = 0.0
    best: EpochRecord | None = None
    history: tuple[EpochRecord, ...] = ()

    @property
    def validations_since_best(self) -> int:
        """Return the number of validated epochs after the best one."""
        return 0 if self.best is None else sum(record.epoch > self.best.epoch for record in self.history)


class CheckpointFacts(BaseModel):
    """Content of checkpoint.json.

    `query_identity` is the version of `retrieval.query_text.query_identity` that is applied to texts before the
    tokenizer; 0: none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[3] = FORMAT_VERSION
    recipe: Recipe
    dataset_name: str
    dataset_fingerprint: str
    n_labels: int
    train_queries: int
    vocabulary: int
    query_identity: QueryIdentity = 0
    device: str
    versions: dict[str, str]
    finished: str
    classifier_weight: float
    best: EpochRecord
    history: tuple[EpochRecord, ...]


class RunFacts(BaseModel):
    """Content of run.json: only the same run may continue in a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    dataset_fingerprint: str
