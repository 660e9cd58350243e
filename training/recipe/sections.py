"""The sections of a recipe, immutable and validated. A key that a file leaves out has the default written here."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.bundle.memory_labels import MAX_MEMORY_WEIGHT, MAX_NEIGHBOURS

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]
Weight = Annotated[float, Field(ge=0.0)]
Exponent = Annotated[float, Field(ge=0.0, le=4.0)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of every section of a recipe: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StaticEncoderRecipe(Section):
    """One learned vector and weight per token, plus vectors of subword n-grams and token pairs.

    See model/static_encoder.py. The tokenizer is learned from the dataset's texts. `start_from` is the name or folder
    of a transformer that provides the tokenizer and the initial token vectors instead.
    """

    kind: Literal["static"] = "static"
    dim: Positive = 256
    vocabulary_size: Annotated[int, Field(ge=64)] = 30_000
    subword_rows: Count = Field(default=50_000, description="maximum number of subword n-grams; 0: none")
    pair_rows: Count = Field(default=50_000, description="rows of the hash table for pairs of adjacent tokens; 0: none")
    pair_dropout: Dropout = Field(
        default=0.5, description="probability that a training text is encoded without its pairs"
    )
    initial_vectors: Literal["shipped", "random"] = Field(
        default="shipped", description="initial token vectors: of the token table that ships with Diptych, or random"
    )
    start_from: str | None = None
    max_tokens: Positive = 64


class TransformerEncoderRecipe(Section):
    """A Hugging Face encoder, by name or folder, with mean pooling; `layers` keeps only the first layers."""

    kind: Literal["transformer"] = "transformer"
    model: str
    layers: Positive | None = None
    max_tokens: Positive = 32


EncoderRecipe = Annotated[StaticEncoderRecipe | TransformerEncoderRecipe, Field(discriminator="kind")]


class HeadRecipe(Section):
    """One head (g1 or g2): output width (null: the encoder's width) and dropout."""

    dim: Positive | None = None
    dropout: Dropout = 0.0


class HeadsRecipe(Section):
    """g1 (dual encoder) and g2 (classifier)."""

    label_rows: Literal["free", "text"] = Field(
        default="free", description="ψ: free rows, or g2 of the label's text plus a free residual η (SiameseXML)"
    )
    dual_encoder: HeadRecipe = HeadRecipe()
    classifier: HeadRecipe = HeadRecipe()


class LabelQueriesRecipe(Section):
    """Label texts as extra training queries; their positives share training queries with them (Gandalf, 2024).

    `training.batching.label_queries` defines the values of `targets`.
    """

    share: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None,
        description="label queries per epoch as a share of the training queries; null: the share of training queries "
        "that are label texts if that is more than half, else 0",
    )
    targets: Literal["neighbours", "gandalf", "glas", "one_hot"] = "neighbours"
    max_positives: Positive = Field(default=30, description="maximum number of positives per label query")
    threshold: Share = Field(
        default=0.1, description="δ: minimum cosine of two labels' query sets; gandalf and glas: targets are above it"
    )
    graph: Literal["shared_queries", "random_walk"] = Field(
        default="shared_queries",
        description="co-occurrence of labels: shared training queries, or visits of random walks",
    )
    labels_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="share of the labels that may become label queries"
    )
    labels_order: Literal["random", "tail_first"] = Field(
        default="random", description="these labels are drawn at random, or are those with fewest training queries"
    )
    epoch: Literal["added", "only", "equal_budget"] = Field(
        default="added",
        description="rows of an epoch: label queries in addition to all training queries, label queries only, or a "
        "sample of both that is as large as the training queries",
    )

    @model_validator(mode="after")
    def _has_rows(self) -> "LabelQueriesRecipe":
        if self.epoch != "added" and not self.share:
            raise ValueError(f"epoch is {self.epoch} without label queries: set share above 0")
        return self


class BatchingRecipe(Section):
    """Batches and their label pools (UniDEC, Algorithm 1)."""

    batch_size: Annotated[int, Field(ge=2)] = 512
    clustered: bool = Field(default=False, description="batches of similar queries (clusters); else random batches")
    positives: Positive = Field(default=5, description="β: positives per query, sampled without replacement")
    hard_negatives: Count = Field(default=1, description="η: hard negatives per query and epoch")
    refresh_epochs: Positive = Field(
        default=3, description="τ of the paper: epochs between two refreshes of clusters and hard negatives"
    )
    pool_size: Positive | Literal["all"] = Field(
        default=4000, description="maximum size of a batch's label pool; all: every label in every step"
    )
    fill_with_positives: bool = Field(
        default=False,
        description="fill the pool up to pool_size with other positives of the batch's queries: pools without hard "
        "negatives are then as large as with them",
    )
    grad_cache_chunk: Positive | None = Field(
        default=None, description="GradCache chunk size in texts, which are encoded twice; null: no GradCache"
    )
    label_queries: LabelQueriesRecipe = LabelQueriesRecipe()


class ClicksRecipe(Section):
    """Use of click weights and exposures; each key is off at 0. Without weights, every positive has weight 1.

    A click share is a positive's weight divided by the greatest weight of its query.
    """

    sampling: Exponent = Field(
        default=0.0, description="α: positives are sampled in proportion to weight^α, without replacement"
    )
    loss: Exponent = Field(
        default=0.0,
        description="in the mean of a loss over positives (PSL), each counts with (click share)^loss; BCE is unchanged",
    )
    popularity: Exponent = Field(
        default=0.0,
        description="popularity is computed from the sum of weight^popularity of training positives; 0: their number",
    )
    exposed_negatives: Count = Field(
        default=0, description="labels per query and step that were shown and not clicked, as further hard negatives"
    )


class LossRecipe(Section):
    """One head's loss: a weighted sum of terms on scores divided by `temperature`.

    `positives` selects the pairs that a term is averaged over: `all` positives of a query in the pool (PSL) or the
    `one` sampled first (POL). BCE always uses all. `query_to_label` is λ_D (λ_C): the weight of the query→label
    direction; label→query has the rest.
    """

    decoupled_softmax: Weight = 1.0
    supcon: Weight = 0.0
    triplet: Weight = Field(default=0.0, description="mean over the negatives within `margin` of the positive")
    bce: Weight = Field(default=0.0, description="weight of BCE (sum over the pool, per query)")
    positives: Literal["all", "one"] = "all"
    margin: Weight = 0.3
    temperature: Temperature = 1.0
    query_to_label: Share = 0.5

    @model_validator(mode="after")
    def _has_a_term(self) -> "LossRecipe":
        if self.decoupled_softmax + self.supcon + self.triplet + self.bce == 0:
            raise ValueError("decoupled_softmax, supcon, triplet and bce are all 0: set at least one weight")
        return self


class DualEncoderLossRecipe(LossRecipe):
    """The dual encoder's loss, on cosines."""

    temperature: Temperature = 0.07


class ClassifierLossRecipe(LossRecipe):
    """The classifier's loss, on inner products without normalisation; the BCE term learns popularity."""

    bce: Weight = 0.05


class LossesRecipe(Section):
    """L = λ·L_D + (1−λ)·L_C; `dual_encoder_share` is λ."""

    dual_encoder_share: Share = 0.5
    dual_encoder: DualEncoderLossRecipe = DualEncoderLossRecipe()
    classifier: ClassifierLossRecipe = ClassifierLossRecipe()


class OptimizerRecipe(Section):
    """AdamW for dense weights; the row-wise optimizer for ψ and the tables of the static encoder."""

    epochs: Positive = 30
    encoder_lr: Rate = Field(default=1e-4, description="transformer layers; AdamW")
    heads_lr: Rate = Field(default=1e-3, description="g1 and g2; AdamW")
    classifier_lr: Rate = Field(default=1e-1, description="rows of ψ; row-wise")
    token_lr: Rate = Field(default=5e-3, description="rows of the static token table; row-wise")
    classifier_rows: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of ψ; bfloat16 halves its memory and uses stochastic rounding"
    )
    weight_decay: Weight = 0.01
    warmup: Share = Field(default=0.05, description="share of all steps in which the learning rate rises to its peak")
    averaging: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.75,
        description="decay per epoch of the moving average of the weights, which is validated and saved; 0: no average",
    )
    clip_norm: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="maximum gradient norm of AdamW's weights"
    )


Metric = Annotated[str, Field(pattern=r"^(w?P|nDCG|PSP|w?R|C)@(1|3|5|10)$")]


class ValidationRecipe(Section):
    """The mean of `metrics` selects the best epoch, the classifier weight and the popularity bonus.

    With `fixed_weight`, the weight that would be selected is only reported. wP@k and wR@k are weighted by clicks and
    need a dataset with weights.
    """

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("P@1", "P@5", "R@10", "PSP@5")
    every_epochs: Positive = 1
    patience: Positive | None = Field(
        default=5,
        description="training ends when this many validations in a row are not better than the best; null: never early",
    )
    max_queries: Positive = 2000
    fixed_weight: Share | None = Field(
        default=None, description="classifier weight of the score; null: the best of `weights`"
    )
    weights: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    distractors: Weight = Field(
        default=1.0,
        description="untrained labels that are never correct, per trained label, while κ is chosen; 0: none added",
    )
    popularities: Annotated[tuple[Share, ...], Field(min_length=1)] = (
        0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7,
    )  # fmt: skip


class MemoryRecipe(Section):
    """The query memory: votes of the nearest training queries. Validation selects γ, τ and the number of neighbours.

    γ = 0, no votes, is always a candidate. The first temperature and number of neighbours are tried first.
    """

    max_queries: Count = Field(
        default=200_000, description="maximum number of training queries in the memory, the most useful ones; 0: none"
    )
    weights: tuple[Annotated[float, Field(gt=0.0, le=MAX_MEMORY_WEIGHT)], ...] = (0.1, 0.2, 0.3, 0.5, 0.8)
    temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1)] = (0.1, 0.05, 0.2)
    neighbours: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_NEIGHBOURS)], ...], Field(min_length=1)] = (16, 32)


class PropensityRecipe(Section):
    """Constants of the propensity model of PSP@k (Jain et al. 2016)."""

    a: Annotated[float, Field(gt=0.0, le=5.0)] = 0.55
    b: Annotated[float, Field(gt=0.0, le=100.0)] = 1.5


class CascadeRecipe(Section):
    """CascadeXML: one classifier per level of a label tree, each on [CLS] of its own layers (Kharbanda et al. 2022).

    Level 0 has the fewest clusters; the last level has the labels. `layers`, `dropout` and `loss_weights` have one
    value per level, `clusters` and `shortlist` one per level but the last.
    """

    clusters: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        description="number of clusters per level, ascending powers of two: each cluster is halved"
    )
    layers: tuple[Annotated[tuple[Positive, ...], Field(min_length=1)], ...] = Field(
        description="transformer layers, from 1, whose [CLS] a level reads; several are concatenated and projected"
    )
    shortlist: tuple[Positive, ...] = Field(description="clusters per query whose children the next level scores")
    dropout: tuple[Dropout, ...] = Field(description="dropout of each level's feature")
    loss_weights: tuple[Weight, ...]
    projection_dropout: Dropout = Field(default=0.2, description="dropout before the projection of several layers")
    warmup_epochs: Weight = Field(default=1.0, description="epochs in which the learning rate rises to its peak")
    final_epochs: Weight = Field(default=3.0, description="last epochs, in which it falls; in between it is constant")

    @model_validator(mode="after")
    def _has_a_value_per_level(self) -> "CascadeRecipe":
        levels = len(self.clusters) + 1
        for name, expected in (("layers", levels), ("dropout", levels), ("loss_weights", levels)):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"{name} has {len(getattr(self, name))} values: give {expected}, one per level")
        if len(self.shortlist) != len(self.clusters):
            raise ValueError(f"shortlist has {len(self.shortlist)} values: give {len(self.clusters)}, as clusters has")
        if any(count & (count - 1) for count in self.clusters) or any(a >= b for a, b in pairwise(self.clusters)):
            raise ValueError("clusters must be ascending powers of two, such as [128, 1024]")
        return self


class ProvenanceRecipe(Section):
    """Dotted keys whose values a paper prints, and keys that follow from printed values; all other keys are ours."""

    paper: str = ""
    published: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
