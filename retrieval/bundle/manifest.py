"""The manifest of a bundle: its files, the facts that readers need, and the figures measured when it was built.

retrieval/bundle/verified_files compares the files with it.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.bundle.signatures import SIGNATURE, Signature, check_signature
from retrieval.errors import BundleError, one_line
from retrieval.system.safe_open import open_bundle_folder, read_small

FORMAT_VERSION: Literal[3] = 3  # the version that is written; version 1 had no directions, version 2 no nodes
READABLE = (1, 2, 3)
MANIFEST = "manifest.json"
UNLISTED = {MANIFEST, SIGNATURE}  # a manifest cannot hold its own hash
MOST_FILES = 256  # per bundle; a reader opens all of them at once
MANIFEST_LIMIT = 1 << 20  # bytes; a manifest lists a dozen files, more is an attack on the reader's memory
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

TOKENIZER, QUERY_ENCODER, LABEL_ENCODER = "tokenizer.json", "query_encoder.onnx", "label_encoder.onnx"
INDEX, VECTORS, LABELS, GOLDEN = "index.hnsw", "vectors.npy", "labels.arrow", "golden.json"
DIRECTIONS, NODES = "directions.npy", "nodes.npy"
ENCODERS = (QUERY_ENCODER, LABEL_ENCODER)  # also the beginning of the names of their weights
REQUIRED = (TOKENIZER, QUERY_ENCODER, LABEL_ENCODER, INDEX, VECTORS, LABELS, GOLDEN)
KNOWN = {*REQUIRED, DIRECTIONS, NODES}

FEW, MANY = 10, 100  # values of k at which the index's recall is measured
MOST = (1 << 31) - 1  # of anything that is counted: what a reader allocates or loops over must have a bound
Count = Annotated[int, Field(ge=1, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Precision = Literal["float32", "float16", "int8"]  # of the query encoder; labels are encoded in float32


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Part):
    """What one file must be."""

    bytes: Annotated[int, Field(ge=0, lt=1 << 63)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LabelFacts(_Part):
    """How many labels there are, and how many of them are of the kinds that are easily handled by accident.

    The classifier learned `trained` ones; to `imputed` ones it was extended from their nearest trained neighbours. The
    texts of `duplicates` stand in an earlier row as well: they are found together, equal scores in the order of rows.
    `zeros` have a vector of length zero: every query gives them score 0.
    """

    count: Count
    trained: Whole
    imputed: Whole
    duplicates: Whole
    zeros: Whole


class Source(_Part):
    """Where the bundle comes from."""

    dataset: str
    dataset_fingerprint: str
    recipe: str
    diptych_version: str


class ModelFacts(_Part):
    """What the encoders expect and give; widths in numbers, lengths in tokens or characters.

    `balance` b is the classifier's share in the geometry of the label vectors, [√(1−b)·d ; √b·ψ]; it decides which
    weight the index is best at, and changes no score. d and ψ have unit length, save that ψ is shrunk by `cone_shrink`
    ε along the direction that trained labels share; the query encoder stretches its classifier half by 1/ε along it,
    which leaves every score as it was. ε = 1: nothing is shrunk.
    """

    encoder: Literal["static", "transformer"]
    dual_dim: Count
    classifier_dim: Count
    balance: Annotated[float, Field(gt=0.0, lt=1.0)]
    cone_shrink: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=1 << 16)]
    max_characters: Annotated[int, Field(ge=1, le=1 << 24)]
    pad_id: Whole
    unknown_id: Whole
    bytes_per_token: Annotated[float, Field(ge=1e-3, le=1e6)]

    @property
    def dim(self) -> int:
        """Width of a label vector: both halves."""
        return self.dual_dim + self.classifier_dim

    def query_scale(self, weight: float) -> NDArray[np.float32]:
        """What the query encoder's halves are multiplied with, number by number [D], to search at `weight`.

        ⟨[(1−w)/√(1−b)·q ; w/√b·c], [√(1−b)·d ; √b·ψ]⟩ = (1−w)⟨q, d⟩ + w⟨c, ψ⟩: the weight goes to the query, so one
        index serves every weight.
        """
        return np.array([1.0 - weight, weight], np.float32).repeat(self._widths) / self.label_scale()

    def label_scale(self) -> NDArray[np.float32]:
        """What a label's halves are multiplied with, number by number [D]."""
        return np.sqrt([1.0 - self.balance, self.balance]).astype(np.float32).repeat(self._widths)

    @property
    def _widths(self) -> tuple[int, int]:
        return self.dual_dim, self.classifier_dim


class Effort(_Part):
    """How hard to search at one weight: `ef` candidates for k up to 10, `ef_at_100` for k = 100, and recalls reached.

    None where the index does not find enough with any number of them: every label is compared. The first three recalls
    are those of validation queries, the others those of label texts; older bundles have only the first two.
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
    def _recalls_at_100_go_together(self) -> Self:
        later = (self.recall_at_100, self.label_text_recall_at_10, self.label_text_recall_at_100)
        if None in later and (any(one is not None for one in later) or self.ef_at_100 is not None):
            raise ValueError("ef_at_100, recall_at_100 and the recalls of label texts go together")
        return self

    def at(self, k: int) -> int | None:
        """Return the candidates for k answers, interpolated between 10 and 100; None: compare all labels."""
        if k <= FEW or self.ef is None or self.recall_at_100 is None:
            return self.ef
        if self.ef_at_100 is None:
            return None
        return self.ef + -(-max(self.ef_at_100 - self.ef, 0) * (k - FEW) // (MANY - FEW))


class IndexFacts(_Part):
    """The graph's settings and its measured recall against exact search, in order of weight from 0 to 1.

    The index holds label vectors projected to `width` directions, which keep the share `energy` of their variance;
    None: the whole vectors. It holds each distinct vector once, in `nodes` nodes; None: all vectors are distinct. The
    recalls are over `recall_queries` validation queries and `recall_label_texts` label texts.
    """

    width: Count | None = None
    energy: Share | None = None
    nodes: Count | None = None
    m: Count
    ef_construction: Count
    recall_target: Share
    recall_queries: Whole
    recall_label_texts: Whole = 0
    efforts: tuple[Effort, ...]

    @model_validator(mode="after")
    def _weights_span_the_unit_interval(self) -> Self:
        weights = [effort.weight for effort in self.efforts]
        if not weights or weights != sorted(set(weights)) or (weights[0], weights[-1]) != (0.0, 1.0):
            raise ValueError(f"efforts must rise from weight 0 to weight 1, not {weights}")
        return self

    def effort(self, weight: float, k: int = FEW) -> int | None:
        """Return the candidates for `weight` and k, the larger of the two nearest weights; None: compare all labels."""
        below = max((one for one in self.efforts if one.weight <= weight), key=lambda one: one.weight).at(k)
        above = min((one for one in self.efforts if one.weight >= weight), key=lambda one: one.weight).at(k)
        return None if below is None or above is None else max(below, above)


class Parity(_Part):
    """The least cosine between the vectors of checkpoint and ONNX encoders, over real texts of up to so many tokens."""

    queries: Whole
    query_cosine: Annotated[float, Field(ge=-1.0, le=1.001)]
    labels: Whole
    label_cosine: Annotated[float, Field(ge=-1.0, le=1.001)]
    longest_tokens: Count


class Speed(_Part):
    """Queries a second that one thread encodes in batches of so many, with the float32 encoder and the bundle's own."""

    batch: Count
    float32: Annotated[float, Field(gt=0.0)]
    reduced: Annotated[float, Field(gt=0.0)]

    @property
    def times(self) -> float:
        """How many times as fast the bundle's own encoder is."""
        return self.reduced / self.float32


class Reduced(_Part):
    """What a query encoder of less precision was measured at beside the float32 one, over validation queries.

    Cosines are between their query vectors at the default weight; P@1 in percent is of exact search, so that nothing
    but precision differs.
    """

    queries: Count
    least_cosine: Annotated[float, Field(ge=-1.001, le=1.001)]
    mean_cosine: Annotated[float, Field(ge=-1.001, le=1.001)]
    float32_p_at_1: Percent
    p_at_1: Percent
    speeds: tuple[Speed, ...]

    @property
    def times(self) -> float | None:
        """The geometric mean of how many times as fast it is; None where no speed was measured."""
        return geometric_mean([one.times for one in self.speeds]) if self.speeds else None


class Quality(_Part):
    """Figures in percent over the checkpoint's validation queries: its own, and the bundle's end to end."""

    queries: Count
    checkpoint: dict[str, float]
    bundle: dict[str, float]


class GoldenFacts(_Part):
    """What the golden answers must still show on another processor."""

    queries: Whole
    overlap_at_10: Share
    score_tolerance: Annotated[float, Field(gt=0.0, le=1.0)]


class Manifest(_Part):
    """manifest.json: everything a reader must know before it opens a file of the bundle."""

    format_version: Literal[1, 2, 3]
    created: str
    source: Source
    labels: LabelFacts
    precision: Precision
    classifier_weight: Share
    model: ModelFacts
    index: IndexFacts
    parity: Parity
    reduced: Reduced | None = None
    quality: Quality | None
    golden: GoldenFacts
    files: Annotated[dict[str, FileEntry], Field(max_length=MOST_FILES)]

    @model_validator(mode="after")
    def _files_are_those_of_a_bundle(self) -> Self:
        if missing := [name for name in REQUIRED if name not in self.files]:
            raise ValueError(f"files lists no {', '.join(missing)}")
        if hostile := [name for name in self.files if not NAME.fullmatch(name) or name in UNLISTED]:
            raise ValueError(f"{hostile[0]!r} is not a plain file name")
        if unknown := [name for name in self.files if name not in KNOWN and not name.startswith(ENCODERS)]:
            raise ValueError(f"{unknown[0]!r} is not a file of a bundle")
        if (self.index.width is None) == (DIRECTIONS in self.files):
            raise ValueError(f"index.width and {DIRECTIONS} go together, and only one of them is there")
        if (self.index.nodes is None) == (NODES in self.files):
            raise ValueError(f"index.nodes and {NODES} go together, and only one of them is there")
        if self.index_size > self.labels.count:
            raise ValueError(f"the index has {self.index_size} nodes, more than the {self.labels.count} labels")
        if self.index_dim > self.model.dim:
            raise ValueError(f"the index has {self.index_dim} numbers a label, more than a whole vector")
        return self

    @property
    def index_dim(self) -> int:
        """Return the width of the index's vectors."""
        return self.model.dim if self.index.width is None else self.index.width

    @property
    def index_size(self) -> int:
        """Return the number of vectors in the index."""
        return self.labels.count if self.index.nodes is None else self.index.nodes


def read_manifest(folder: Path, trusted: Sequence[str] = ()) -> Manifest:
    """Read and validate a bundle's manifest; with `trusted` keys one must have signed it. Raises BundleError."""
    return read_signed_manifest(folder, trusted).manifest


class SignedManifest(NamedTuple):
    """A manifest, its bytes and their signature; None if no trusted keys were given."""

    manifest: Manifest
    written: bytes
    signature: Signature | None


def read_signed_manifest(folder: Path, trusted: Sequence[str] = (), descriptor: int | None = None) -> SignedManifest:
    """Read as `read_manifest` does; also return bytes and signature. `descriptor`: the folder, if it is open."""
    try:
        opened = open_bundle_folder(folder) if descriptor is None else os.dup(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{folder} cannot be opened ({error.strerror}). Check its permissions.") from error
    try:
        written = _manifest_bytes(folder, opened)
        signature = check_signature(folder, opened, written, trusted)
    finally:
        os.close(opened)
    return SignedManifest(parse_manifest(folder / MANIFEST, written), written, signature)


def _manifest_bytes(folder: Path, opened: int) -> bytes:
    try:
        return read_small(folder / MANIFEST, MANIFEST_LIMIT, opened)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be read ({error.strerror}). Check its permissions.") from error


def parse_manifest(path: Path, written: bytes) -> Manifest:
    """Validate the bytes of a manifest.json, named `path` in errors. Raises BundleError."""
    try:
        content = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({one_line(error)}). Export the bundle again.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version not in READABLE:
        raise BundleError(
            f"{path} has format version {version}; this release reads versions {READABLE[0]} to {READABLE[-1]}. "
            f"{'Install a newer release' if version > FORMAT_VERSION else 'Export the bundle again'}."
        )
    try:
        return Manifest.model_validate_json(written, strict=True)
    except ValidationError as error:
        raise BundleError(f"{path}: {first_fault(error)}. Export the bundle again.") from error


def first_fault(error: ValidationError) -> str:
    """Return place and message of the first error of a validation."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{place}: {one_line(first['msg'])}"
