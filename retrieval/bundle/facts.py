"""The sections of a manifest: sizes, model, index, and the figures measured when the bundle was built.

Field names are keys of manifest.json, except where an alias keeps the key of an earlier format.
"""

from statistics import geometric_mean
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from retrieval.bundle.memory_labels import MAX_MEMORY_WEIGHT, MAX_NEIGHBOURS, VoteSettings
from retrieval.query_text import QueryIdentity

SMALL_K, LARGE_K = 10, 100  # values of k at which the index's recall is measured
MAX_LEVELS = 8  # of a label tree
MAX_COUNT = (1 << 31) - 1  # bounds what a reader allocates or loops over
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
MemoryWeight = Annotated[float, Field(ge=0.0, le=MAX_MEMORY_WEIGHT)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Precision = Literal["float32", "float16", "int8"]  # of the query encoder; labels are encoded in float32
VectorPrecision = Literal["float32", "int8"]  # of the label vectors
IndexKind = Literal["hnsw", "exact", "milvus"]


def refuse_boolean(value: Any) -> Any:
    """Return a value that is no boolean; `true` would pass as the literal 1. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("it is a boolean, not a number")
    return value


class ManifestPart(BaseModel):
    """A section of a manifest. Keys without a field are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class FileEntry(ManifestPart):
    """The size and SHA-256 of one file."""

    bytes: Annotated[int, Field(ge=0, lt=1 << 63)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LabelFacts(ManifestPart):
    """Numbers of labels.

    Attributes:
        count: all labels.
        trained: labels that the classifier was trained on.
        imputed: labels whose classifier rows were imputed from their nearest trained neighbours.
        duplicates: labels with the text of an earlier row. They have equal scores and are ranked by row.
        zeros: labels whose vector is zero. Their score is 0 for every query.
    """

    count: Count
    trained: CountOrZero
    imputed: CountOrZero
    duplicates: CountOrZero
    zeros: CountOrZero


class Provenance(ManifestPart):
    """The dataset, recipe and release that a bundle was made from."""

    dataset: str
    dataset_fingerprint: str
    recipe: str
    diptych_version: str


class ModelFacts(ManifestPart):
    """Inputs and outputs of the encoders; widths in numbers, lengths in tokens or characters.

    `balance` b is the classifier's share in the geometry of the label vectors, [√(1−b)·d ; √b·ψ]. It decides at which
    weight the index is most accurate, and changes no score. d and ψ have unit length, except that ψ is shrunk by
    `cone_shrink` ε along the direction that trained labels share. The query encoder stretches its classifier half by
    1/ε along it, so scores do not change. ε = 1: nothing is shrunk.

    `classifier_dim` is 0 if the model has no classifier; then the vectors have their first half only, and every search
    has weight 0. `dual_dim` is 0 for a cascade, whose query vector is the classifiers' input (see `CascadeFacts`); then
    every search has weight 1, and `balance` has no meaning.

    `query_identity` is the version of `retrieval.query_text.query_identity` that is applied to texts before the
    tokenizer; 0: none, as in older bundles.
    """

    encoder: Literal["static", "transformer"]
    dual_dim: CountOrZero
    classifier_dim: CountOrZero
    balance: Annotated[float, Field(gt=0.0, lt=1.0)]
    cone_shrink: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=1 << 16)]
    max_characters: Annotated[int, Field(ge=1, le=1 << 24)]
    pad_id: CountOrZero
    unknown_id: CountOrZero
    bytes_per_token: Annotated[float, Field(ge=1e-3, le=1e6)]
    query_identity: Annotated[QueryIdentity, BeforeValidator(refuse_boolean)] = 0

    @property
    def dim(self) -> int:
        """Return the width of a query vector, which is that of a label vector except in a cascade: both halves."""
        return self.dual_dim + self.classifier_dim

    def query_scale(self, weight: float) -> NDArray[np.float32]:
        """Return the factors [D] of a query vector for a search at `weight`.

        ⟨[(1−w)/√(1−b)·q ; w/√b·c], [√(1−b)·d ; √b·ψ]⟩ = (1−w)⟨q, d⟩ + w⟨c, ψ⟩: the weight is applied to the query, so
        one index serves every weight.
        """
        return np.array([1.0 - weight, weight], np.float32).repeat(self._widths) / self.label_scale()

    def label_scale(self) -> NDArray[np.float32]:
        """Return the factors [D] of a label vector."""
        return np.sqrt([1.0 - self.balance, self.balance]).astype(np.float32).repeat(self._widths)

    @property
    def _widths(self) -> tuple[int, int]:
        return self.dual_dim, self.classifier_dim


class EfSearch(ManifestPart):
    """The index's `ef_search` at one weight, and the recalls reached with it.

    Attributes:
        ef: candidates for k up to 10; None: no number of candidates reaches the recall, so all labels are compared.
        ef_at_100: candidates for k = 100; None as for `ef`.

    Recalls are over validation queries, or over label texts if the name begins with `label_text`. Older bundles have
    only the first two.
    """

    weight: Share
    ef: Count | None
    ef_at_100: Count | None = None
    recall_at_10: Share
    recall_at_1: Share
    recall_at_100: Share | None = None
    label_text_recall_at_10: Share | None = None
    label_text_recall_at_100: Share | None = None

    @model_validator(mode="after")
    def _has_all_later_recalls_or_none(self) -> Self:
        later = (self.recall_at_100, self.label_text_recall_at_10, self.label_text_recall_at_100)
        if None in later and (any(recall is not None for recall in later) or self.ef_at_100 is not None):
            raise ValueError("ef_at_100, recall_at_100 and the recalls of label texts must be given together")
        return self

    def at(self, k: int) -> int | None:
        """Return the candidates for k results, interpolated between 10 and 100; None: compare all labels."""
        if k <= SMALL_K or self.ef is None or self.recall_at_100 is None:
            return self.ef
        if self.ef_at_100 is None:
            return None
        return self.ef + -(-max(self.ef_at_100 - self.ef, 0) * (k - SMALL_K) // (LARGE_K - SMALL_K))


class IndexFacts(ManifestPart):
    """The index's settings and its measured recall against exact search.

    Attributes:
        kind: "hnsw", a graph; "milvus": the same graph, in a Milvus collection; or "exact": a search compares all
            labels, and `m`, `ef_construction` and every `ef_search` are None. Left out of the file if "hnsw", since
            older releases do not know it.
        width: number of principal directions that label vectors are projected to; None: they are not projected.
        energy: share of the variance that the projection keeps.
        nodes: number of distinct vectors, each in one node; None: all vectors are distinct.
        m: links per node of the graph.
        ef_construction: candidates per insertion into the graph.
        recall_queries: number of validation queries that the recalls are over.
        recall_label_texts: number of label texts that the recalls are over.
        ef_search: in ascending order of weight, from 0 to 1.
    """

    kind: IndexKind = "hnsw"
    width: Count | None = None
    energy: Share | None = None
    nodes: Count | None = None
    m: Count | None = None
    ef_construction: Count | None = None
    recall_target: Share
    recall_queries: CountOrZero
    recall_label_texts: CountOrZero = 0
    ef_search: Annotated[tuple[EfSearch, ...], Field(validation_alias="efforts", serialization_alias="efforts")]

    @model_validator(mode="after")
    def _weights_span_zero_to_one(self) -> Self:
        weights = [setting.weight for setting in self.ef_search]
        if not weights or weights != sorted(set(weights)) or (weights[0], weights[-1]) != (0.0, 1.0):
            raise ValueError(f"the weights of efforts must rise from 0 to 1, not {weights}")
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        exact = self.kind == "exact"
        if (self.m is None) != exact or (self.ef_construction is None) != exact:
            raise ValueError(f"m and ef_construction must {'not ' if exact else ''}be given with kind {self.kind!r}")
        if exact and (self.width is not None or any(setting.ef for setting in self.ef_search)):
            raise ValueError("width and ef must be null with kind 'exact'")
        if self.kind == "milvus" and self.width is None:
            raise ValueError("width must be given with kind 'milvus'")
        return self

    def ef_search_at(self, weight: float, k: int = SMALL_K) -> int | None:
        """Return the candidates for `weight` and k, the larger of the two nearest weights; None: compare all labels."""
        below = max((one for one in self.ef_search if one.weight <= weight), key=lambda one: one.weight).at(k)
        above = min((one for one in self.ef_search if one.weight >= weight), key=lambda one: one.weight).at(k)
        return None if below is None or above is None else max(below, above)


class CascadeLevel(ManifestPart):
    """One level of a label tree.

    Attributes:
        nodes: number of nodes; at the last level, the number of labels.
        dim: width of a node's row, with its bias.
        shortlist: number of nodes that a search keeps; None at the last level.
        shortlist_recall: mean share of a validation query's true nodes that a search keeps; at the last level, of its
            true labels that a search scores. None if not measured.
    """

    nodes: Count
    dim: Count
    shortlist: Count | None = None
    shortlist_recall: Share | None = None


class CascadeFacts(ManifestPart):
    """The levels of a cascade, coarsest first, and the measured recall of its shortlists against exact search.

    Attributes:
        checkpoint_shortlist: the shortlists of the checkpoint; those of the levels may be larger.
        recall_queries: number of validation queries that the recalls are over.
        exact: metrics in percent of exact search over the validation queries, as in `Quality`.
        exact_is_worse: whether they are lower than the checkpoint's by more than export allows; then the shortlists are
            those of the checkpoint, at any recall.
    """

    levels: Annotated[tuple[CascadeLevel, ...], Field(min_length=2, max_length=MAX_LEVELS)]
    checkpoint_shortlist: tuple[Count, ...]
    recall_target: Share
    recall_queries: CountOrZero
    recall_at_1: Share
    recall_at_10: Share
    recall_at_100: Share
    exact: dict[str, float]
    exact_is_worse: bool

    @model_validator(mode="after")
    def _levels_fit_each_other(self) -> Self:
        nodes = [level.nodes for level in self.levels]
        if nodes != sorted(nodes):
            raise ValueError(f"the levels have {nodes} nodes; no level may have fewer than the one above it")
        if any(level.shortlist is None for level in self.levels[:-1]) or self.levels[-1].shortlist is not None:
            raise ValueError("every level but the last must have a shortlist")
        return self

    @property
    def dim(self) -> int:
        """Return the width of a query vector: one part per level."""
        return sum(level.dim for level in self.levels)

    @property
    def shortlist(self) -> tuple[int, ...]:
        """Return the number of nodes that a search keeps at each level before the last."""
        return tuple(level.shortlist or 1 for level in self.levels[:-1])


class MemoryEfSearch(ManifestPart):
    """The `ef_search` of the memory's index (None: compare all its queries), and the recall of neighbours with it."""

    ef: Count | None
    recall: Share


class MemoryFacts(ManifestPart):
    """The query memory: its settings, the measured recall of its index, and the parity of its vectors.

    Attributes:
        half: the half of the query vectors whose inner product is the similarity.
        weight: γ, the default weight of the votes.
        temperature: τ.
        neighbours: number of nearest training queries that vote.
        queries: number of training queries in the memory.
        width: number of principal directions that the index's vectors are projected to.
        energy: share of the variance that the projection keeps.
        m: links per node of the graph.
        ef_construction: candidates per insertion into the graph.
        recall_queries: number of validation queries that the recall is over.
        parity_queries, parity_cosine: as in `Parity`, between vectors of the memory and of the checkpoint.
    """

    half: Literal["dual_encoder", "classifier"]
    weight: MemoryWeight
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)]
    neighbours: Annotated[int, Field(ge=1, le=MAX_NEIGHBOURS)]
    queries: Count
    width: Count
    energy: Share
    m: Count
    ef_construction: Count
    recall_target: Share
    recall_queries: CountOrZero
    ef_search: MemoryEfSearch
    parity_queries: CountOrZero
    parity_cosine: Annotated[float, Field(ge=-1.0, le=1.001)]

    @property
    def votes(self) -> VoteSettings:
        """Return γ, τ and the number of neighbours."""
        return VoteSettings(self.weight, self.temperature, self.neighbours)

    def dim(self, model: ModelFacts) -> int:
        """Return the width of a vector of the memory."""
        return model.dual_dim if self.half == "dual_encoder" else model.classifier_dim


class Parity(ManifestPart):
    """The smallest cosines between vectors of the checkpoint and of the ONNX encoders, over real texts.

    `longest_tokens` is the length of the longest text.
    """

    queries: CountOrZero
    query_cosine: Annotated[float, Field(ge=-1.0, le=1.001)]
    labels: CountOrZero
    label_cosine: Annotated[float, Field(ge=-1.0, le=1.001)]
    longest_tokens: Count


class Speed(ManifestPart):
    """Queries per second that one thread encodes in batches of `batch`, with float32 and with reduced precision."""

    batch: Count
    float32: Annotated[float, Field(gt=0.0)]
    reduced: Annotated[float, Field(gt=0.0)]

    @property
    def times(self) -> float:
        """Return the speed-up of the bundle's encoder."""
        return self.reduced / self.float32


class Reduced(ManifestPart):
    """A query encoder of reduced precision compared with float32, over validation queries.

    Cosines are between their query vectors at the default weight. P@1 in percent is of exact search, so that only the
    precision differs.
    """

    queries: Count
    least_cosine: Cosine
    mean_cosine: Cosine
    float32_p_at_1: Percent
    p_at_1: Percent
    speeds: tuple[Speed, ...]

    @property
    def times(self) -> float | None:
        """Return the geometric mean of the speed-ups; None if no speed was measured."""
        return geometric_mean([speed.times for speed in self.speeds]) if self.speeds else None


class Quality(ManifestPart):
    """Metrics in percent over the checkpoint's validation queries, of the checkpoint and of the bundle end to end.

    `seen_labels` are the bundle's among labels with training positives; null if every label has some.
    """

    queries: Count
    checkpoint: dict[str, float]
    bundle: dict[str, float]
    seen_labels: dict[str, float] | None = None


class GoldenFacts(ManifestPart):
    """Tolerances of the golden answers, since scores vary slightly between CPUs."""

    queries: CountOrZero
    overlap_at_10: Share
    score_tolerance: Annotated[float, Field(gt=0.0, le=1.0)]
