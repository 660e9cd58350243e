"""The manifest of a bundle: its files, the facts that readers need, and the figures measured when it was built.

retrieval/bundle/verified_files compares the files with it.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from retrieval.bundle.facts import (
    CascadeFacts,
    FileEntry,
    GoldenFacts,
    IndexFacts,
    LabelFacts,
    ManifestPart,
    MemoryFacts,
    ModelFacts,
    Parity,
    Precision,
    Provenance,
    Quality,
    Reduced,
    Share,
    VectorPrecision,
)
from retrieval.bundle.signatures import SIGNATURE, Signature, check_signature
from retrieval.errors import BundleError, one_line
from retrieval.system.safe_open import open_bundle_folder, read_small

# Version 1 had no projection, version 2 no nodes, version 3 no query memory, version 4 no cascade,
# version 5 neither vectors in int8 nor an index that is exact or in Milvus.
READABLE = (1, 2, 3, 4, 5, 6)
FORMAT_VERSION = READABLE[-1]  # the newest; `format_version` returns the one that is written
MANIFEST = "manifest.json"
UNLISTED = {MANIFEST, SIGNATURE}  # a manifest cannot contain its own hash
MAX_FILES = 256  # per bundle; a reader opens all of them at once
MANIFEST_LIMIT = 1 << 20  # bytes; a manifest lists a dozen files; a larger one would attack the reader's memory
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

TOKENIZER, QUERY_ENCODER, LABEL_ENCODER = "tokenizer.json", "query_encoder.onnx", "label_encoder.onnx"
INDEX, VECTORS, LABELS, GOLDEN = "index.hnsw", "vectors.npy", "labels.arrow", "golden.json"
PROJECTION, NODES, VECTOR_SCALES = "directions.npy", "nodes.npy", "vector_scales.npy"
MEMORY_QUERIES, MEMORY_VECTORS = "memory.arrow", "memory_vectors.npy"
MEMORY_INDEX, MEMORY_PROJECTION = "memory.hnsw", "memory_directions.npy"
MEMORY = (MEMORY_QUERIES, MEMORY_VECTORS, MEMORY_INDEX, MEMORY_PROJECTION)
ENCODERS = (QUERY_ENCODER, LABEL_ENCODER)  # also the beginning of the names of their weights
REQUIRED = (TOKENIZER, QUERY_ENCODER, LABEL_ENCODER, INDEX, VECTORS, LABELS, GOLDEN)
KNOWN = {*REQUIRED, PROJECTION, NODES, VECTOR_SCALES, *MEMORY}
REQUIRED_OF_CASCADE = (TOKENIZER, QUERY_ENCODER, VECTORS, LABELS, GOLDEN)
MAX_HEADER = 16_384  # bytes of the header of an .npy file


def level_file(level: int) -> str:
    """Return the name of the file with the rows of a level before the last; those of the last are VECTORS."""
    return f"level_{level}.npy"


def parents_file(level: int) -> str:
    """Return the name of the file with the parents of the nodes of a level after the first."""
    return f"parents_{level}.npy"


def format_version(cascade: CascadeFacts | None, index: IndexFacts | None, vectors: VectorPrecision) -> int:
    """Return the lowest format version that can describe a bundle, so that older releases can read it if possible."""
    if vectors != "float32" or (index is not None and index.kind != "hnsw"):
        return 6
    return 4 if cascade is None else 5


class Manifest(ManifestPart):
    """The content of manifest.json: everything that a reader must know before it opens a file of the bundle."""

    format_version: Literal[1, 2, 3, 4, 5, 6]
    created: str
    source: Provenance
    labels: LabelFacts
    precision: Precision
    vectors: VectorPrecision = "float32"
    classifier_weight: Share
    model: ModelFacts
    graph: Annotated[
        IndexFacts | None, Field(default=None, validation_alias="index", serialization_alias="index")
    ]  # of the HNSW index; None for a cascade
    cascade: CascadeFacts | None = None
    memory: MemoryFacts | None = None
    parity: Parity
    reduced: Reduced | None = None
    quality: Quality | None
    golden: GoldenFacts
    files: Annotated[dict[str, FileEntry], Field(max_length=MAX_FILES)]

    @model_validator(mode="after")
    def _files_and_sizes_are_consistent(self) -> Self:
        if (self.graph is None) == (self.cascade is None):
            raise ValueError("either index or cascade must be given")
        if self.format_version < (needed := format_version(self.cascade, self.graph, self.vectors)) and needed > 4:
            raise ValueError(f"format version {self.format_version} has no {_feature(self)}")
        required = REQUIRED if self.cascade is None else (*REQUIRED_OF_CASCADE, *self._cascade_files(self.cascade))
        if self.graph is not None and self.graph.kind != "hnsw":
            required = tuple(name for name in required if name != INDEX)
        if missing := [name for name in required if name not in self.files]:
            raise ValueError(f"files does not list {', '.join(missing)}")
        if hostile := [name for name in self.files if not NAME.fullmatch(name) or name in UNLISTED]:
            raise ValueError(f"{hostile[0]!r} is not a plain file name")
        known, encoders = (KNOWN, ENCODERS) if self.cascade is None else ({*required}, ENCODERS[:1])
        if unknown := [name for name in self.files if name not in known and not name.startswith(encoders)]:
            raise ValueError(f"{unknown[0]!r} is not a file of {'a' if self.cascade is None else 'such a'} bundle")
        if self.cascade is None:
            self._check_graph()
        else:
            self._check_cascade(self.cascade)
        return self

    def _check_graph(self) -> None:
        if not self.model.dual_dim:
            raise ValueError("model.dual_dim must be at least 1")
        for name, is_given in ((INDEX, self.index.kind == "hnsw"), (VECTOR_SCALES, self.vectors == "int8")):
            if is_given != (name in self.files):
                raise ValueError(f"{name} does not fit index.kind {self.index.kind!r} and vectors {self.vectors!r}")
        if (self.index.width is None) == (PROJECTION in self.files):
            raise ValueError(f"index.width and {PROJECTION} must be given together")
        if (self.index.width is None) != (self.index.energy is None):
            raise ValueError("index.width and index.energy must be given together")
        if (self.index.nodes is None) == (NODES in self.files):
            raise ValueError(f"index.nodes and {NODES} must be given together")
        for name in MEMORY:
            if (self.memory is None) == (name in self.files):
                raise ValueError(f"memory and {name} must be given together")
        if self.memory is not None and self.memory.width > self.memory.dim(self.model):
            raise ValueError(
                f"memory.width is {self.memory.width}, more than the {self.memory.dim(self.model)} of a half"
            )
        if self.index_size > self.labels.count:
            raise ValueError(f"the index has {self.index_size} nodes, more than the {self.labels.count} labels")
        if self.index_dim > self.model.dim:
            raise ValueError(
                f"the index has {self.index_dim} numbers per label, more than the {self.model.dim} of a whole vector"
            )

    def _check_cascade(self, cascade: CascadeFacts) -> None:
        if self.vectors != "float32":
            raise ValueError(f"the rows of a cascade are float32, not {self.vectors}")
        if self.memory is not None or self.model.dual_dim or self.classifier_weight != 1.0:
            raise ValueError("a cascade has no memory, no dual encoder, and classifier_weight 1")
        if cascade.dim != self.model.dim:
            raise ValueError(
                f"the levels of the cascade have {cascade.dim} numbers, but a query vector has {self.model.dim}"
            )
        if cascade.levels[-1].nodes != self.labels.count:
            raise ValueError(
                f"the cascade has {cascade.levels[-1].nodes} labels, but labels.count is {self.labels.count}"
            )
        for level, nodes in enumerate(self.parents, start=1):
            name = parents_file(level)
            if not 0 <= self.files[name].bytes - 4 * nodes <= MAX_HEADER:
                raise ValueError(f"{name} has {self.files[name].bytes} bytes, which does not fit {nodes} nodes")

    @model_serializer(mode="wrap")
    def _without_newer_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys that readers of older versions do not know, unless the version needs them."""
        content: dict[str, Any] = serialize(self)
        if self.cascade is None:
            del content["cascade"]
        if self.vectors == "float32":
            del content["vectors"]
        if self.graph is not None and self.graph.kind == "hnsw":
            del content["index"]["kind"]
        return content

    @staticmethod
    def _cascade_files(cascade: CascadeFacts) -> tuple[str, ...]:
        last = len(cascade.levels) - 1
        return *map(level_file, range(last)), *map(parents_file, range(1, last + 1))

    @property
    def index(self) -> IndexFacts:
        """Return the facts of the HNSW index. Raises BundleError for a cascade."""
        if self.graph is None:
            raise BundleError("the bundle has a cascade instead of an HNSW index. Use another bundle.")
        return self.graph

    @property
    def label_dim(self) -> int:
        """Return the width of a label vector."""
        return self.model.dim if self.cascade is None else self.cascade.levels[-1].dim

    @property
    def index_dim(self) -> int:
        """Return the width of the index's vectors."""
        return self.model.dim if self.index.width is None else self.index.width

    @property
    def graphs(self) -> dict[str, tuple[int, int]]:
        """Return the width and the number of the vectors of each index file."""
        if self.graph is None:
            return {}
        graphs = {INDEX: (self.index_dim, self.index_size)} if self.graph.kind == "hnsw" else {}
        return graphs if self.memory is None else graphs | {MEMORY_INDEX: (self.memory.width, self.memory.queries)}

    @property
    def arrays(self) -> dict[str, tuple[int, int]]:
        """Return rows and columns of each file of vectors. All are float32, except VECTORS if `vectors` is "int8"."""
        arrays = {VECTORS: (self.labels.count, self.label_dim)}
        if self.cascade is not None:
            above = enumerate(self.cascade.levels[:-1])
            return arrays | {level_file(number): (level.nodes, level.dim) for number, level in above}
        arrays[PROJECTION] = (self.model.dim, self.index_dim)
        if self.vectors == "int8":
            arrays[VECTOR_SCALES] = (self.labels.count, 2 if self.model.classifier_dim else 1)
        if self.memory is None:
            return arrays
        dim = self.memory.dim(self.model)
        return arrays | {MEMORY_VECTORS: (self.memory.queries, dim), MEMORY_PROJECTION: (dim, self.memory.width)}

    @property
    def parents(self) -> tuple[int, ...]:
        """Return the number of nodes of each level after the first; empty without a cascade."""
        return () if self.cascade is None else tuple(level.nodes for level in self.cascade.levels[1:])

    @property
    def index_size(self) -> int:
        """Return the number of vectors in the index."""
        return self.labels.count if self.index.nodes is None else self.index.nodes


def _feature(manifest: Manifest) -> str:
    """Name what only a newer format version than the manifest's has."""
    if manifest.cascade is not None:
        return "cascade"
    return f"vectors in {manifest.vectors}" if manifest.vectors != "float32" else f"index of kind {manifest.index.kind}"


class SignedManifest(NamedTuple):
    """A manifest, its bytes and their signature; None if no trusted keys were given."""

    manifest: Manifest
    written: bytes
    signature: Signature | None


def read_manifest(folder: Path, trusted: Sequence[str] = ()) -> Manifest:
    """Read and validate a bundle's manifest; with `trusted` keys one must have signed it. Raises BundleError."""
    return read_signed_manifest(folder, trusted).manifest


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
        return Manifest.model_validate_json(written, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise BundleError(f"{path}: {first_fault(error)}. Export the bundle again.") from error


def first_fault(error: ValidationError) -> str:
    """Return place and message of the first error of a validation."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = one_line(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _manifest_bytes(folder: Path, descriptor: int) -> bytes:
    try:
        return read_small(folder / MANIFEST, MANIFEST_LIMIT, descriptor)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be read ({error.strerror}). Check its permissions.") from error
