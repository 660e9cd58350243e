"""Load the parts of a bundle from the verified contents of its files.

Suffixes: M training queries of the memory, H width of the half that is compared.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.bundle.labels import LabelTable
from retrieval.bundle.manifest import (
    INDEX,
    LABEL_ENCODER,
    LABELS,
    MANIFEST,
    MEMORY_INDEX,
    MEMORY_PROJECTION,
    MEMORY_QUERIES,
    MEMORY_VECTORS,
    NODES,
    PROJECTION,
    QUERY_ENCODER,
    TOKENIZER,
    VECTOR_SCALES,
    VECTORS,
    Manifest,
    level_file,
    parents_file,
)
from retrieval.bundle.memory_file import memory_in
from retrieval.bundle.vector_file import array_in, vectors_in
from retrieval.bundle.verified_files import BundleFiles, read_bundle
from retrieval.errors import BundleError
from retrieval.milvus.collection import graph_facts, projected_blocks
from retrieval.milvus.opening import open_milvus_index
from retrieval.quantized_vectors import LabelVectors, QuantizedVectors
from retrieval.search.attributes import BYTES_PER_LABEL, BYTES_PER_LABEL_WITH_NODES, Attributes
from retrieval.search.cascade_index import CascadeIndex
from retrieval.search.distinct_vectors import Nodes, nodes_in
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import ExactIndex, HnswIndex, VectorIndex, Vectors
from retrieval.search.memory import QueryMemory
from retrieval.search.pca_index import PcaIndex
from retrieval.search.ranker import CascadeRanker, Ranker, VectorRanker
from retrieval.search.thread_pool import ThreadPool
from retrieval.system.low_priority import at_low_priority, directly


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a bundle; `open_bundle` explains them.

    without_server: compare all labels if the index is in Milvus, to verify a bundle before the server has its vectors.
    """

    threads: int | None = None
    search_threads: int | None = None
    provider: str = "cpu"
    low_priority: bool = False
    deferred: bool = False  # load in a process without threads, which is then forked; see `Retriever.start`
    index_sockets: tuple[int, ...] = ()
    without_server: bool = False


class LoadedParts(NamedTuple):
    """The parts of an open bundle. Closing a retriever frees them."""

    labels: LabelTable
    encoder: TextEncoder
    attributes: Attributes
    ranker: Ranker
    pool: ThreadPool  # the threads of all indexes
    memory_texts: pa.Array | None = None


def is_loaded(name: str) -> bool:
    """Return whether a retriever needs a file of a bundle: all but the label encoder and its weights."""
    return not name.startswith(LABEL_ENCODER)


def load_parts(folder: Path, files: BundleFiles, options: LoadOptions) -> LoadedParts:
    """Load everything that a search needs; `folder` names the files in errors. Raises BundleError and BadInput."""
    manifest, contents, model = files.manifest, files.contents, files.manifest.model
    run = at_low_priority if options.low_priority else directly
    labels = LabelTable.parse(contents[LABELS], folder / LABELS)
    if len(labels) != (size := manifest.labels.count):
        raise BundleError(f"{folder / LABELS} has {len(labels)} labels, but {MANIFEST} lists {size}. Export it again.")
    # at normal priority, since threads inherit it
    pool = ThreadPool(options.search_threads or options.threads, started=not options.deferred)
    cascade = manifest.cascade
    load_ranker = _load_vector_ranker if cascade is None else _load_cascade
    ranker, memory_texts = run(lambda: load_ranker(folder, files, pool, options))
    encoder = TextEncoder.load(
        contents, folder / TOKENIZER, folder / QUERY_ENCODER, model, model.dim,
        threads=options.threads, provider=options.provider, low_priority=options.low_priority,
        deferred=options.deferred,
    )  # fmt: skip
    has_nodes = cascade is not None or manifest.index.nodes is not None
    attributes = Attributes(labels.table, BYTES_PER_LABEL_WITH_NODES if has_nodes else BYTES_PER_LABEL)
    return LoadedParts(labels, encoder, attributes, ranker, pool, memory_texts)


def index_rows(folder: Path, trusted: Sequence[str] = ()) -> tuple[Manifest, Iterator[Vectors]]:
    """Verify a bundle whose index is in Milvus; return its manifest and the index's vectors. Raises BundleError."""
    wanted = {VECTORS, VECTOR_SCALES, NODES, PROJECTION}
    with closing(read_bundle(folder, lambda name: name in wanted, trusted)) as files:
        graph_facts(files.manifest)
        vectors_LD, nodes = _label_vectors(folder, files), _nodes(folder, files)
        return files.manifest, projected_blocks(vectors_LD, nodes, _array(folder, files, PROJECTION))


def _load_vector_ranker(
    folder: Path, files: BundleFiles, pool: ThreadPool, options: LoadOptions
) -> tuple[Ranker, pa.Array | None]:
    """Load label vectors, index and query memory, and the texts of the memory's queries (None without one)."""
    manifest = files.manifest
    vectors_LD, nodes = _label_vectors(folder, files), _nodes(folder, files)
    if manifest.index.kind == "exact" or (manifest.index.kind == "milvus" and options.without_server):
        index: VectorIndex = _exact_index(vectors_LD, nodes, pool)
    else:
        index = _load_index(folder, files, pool, options)
    memory, memory_texts = _load_memory(folder, files, pool)
    return VectorRanker(vectors_LD, index, nodes, manifest.model, manifest.index, pool.threads, memory), memory_texts


def _nodes(folder: Path, files: BundleFiles) -> Nodes | None:
    shared = files.manifest.index.nodes
    if shared is None:
        return None
    return nodes_in(files.contents[NODES], folder / NODES, files.manifest.labels.count, shared)


def _label_vectors(folder: Path, files: BundleFiles) -> LabelVectors:
    """View the label vectors. With an exact index, every search reads all of them, so they become float32."""
    manifest = files.manifest
    if manifest.vectors == "float32":
        return _array(folder, files, VECTORS)
    shape = manifest.arrays[VECTORS]
    codes_LD: NDArray[np.int8] = array_in(files.contents[VECTORS], folder / VECTORS, shape, np.int8)
    vectors_LD = QuantizedVectors(codes_LD, _array(folder, files, VECTOR_SCALES), manifest.model.dual_dim)
    return vectors_LD[:] if manifest.index.kind == "exact" else vectors_LD


def _exact_index(vectors_LD: LabelVectors, nodes: Nodes | None, pool: ThreadPool) -> ExactIndex:
    return ExactIndex(vectors_LD if nodes is None else vectors_LD[nodes.representatives], pool.threads)


def _load_cascade(folder: Path, files: BundleFiles, pool: ThreadPool, options: LoadOptions) -> tuple[Ranker, None]:
    """Load the rows of each level and the tree. Raises BundleError if they do not fit each other."""
    facts = files.manifest.cascade
    assert facts is not None, "the caller checked it"
    rows = [_array(folder, files, level_file(level)) for level in range(len(facts.levels) - 1)]
    parents = [
        array_in(files.contents[parents_file(level)], folder / parents_file(level), (nodes,), np.int32)
        for level, nodes in enumerate(files.manifest.parents, start=1)
    ]
    try:
        index = CascadeIndex.build([*rows, _array(folder, files, VECTORS)], parents, facts.shortlist, pool)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
    return CascadeRanker(index), None


def _load_index(folder: Path, files: BundleFiles, pool: ThreadPool, options: LoadOptions) -> VectorIndex:
    ef = min((setting.ef for setting in files.manifest.index.ef_search if setting.ef), default=1)
    index: VectorIndex
    if files.manifest.index.kind == "milvus":
        index = open_milvus_index(files.manifest, ef, options.index_sockets)
    else:
        index = _load_graph(folder, files, INDEX, ef, pool)
    return index if files.manifest.index.width is None else PcaIndex(index, _array(folder, files, PROJECTION))


def _load_memory(folder: Path, files: BundleFiles, pool: ThreadPool) -> tuple[QueryMemory | None, pa.Array | None]:
    """Load the query memory and the texts of its training queries; None for both without one."""
    facts, n_labels = files.manifest.memory, files.manifest.labels.count
    if facts is None:
        return None, None
    texts, labels = memory_in(files.contents[MEMORY_QUERIES], folder / MEMORY_QUERIES, facts.queries, n_labels)
    graph = _load_graph(folder, files, MEMORY_INDEX, facts.ef_search.ef or 1, pool)
    index = PcaIndex(graph, _array(folder, files, MEMORY_PROJECTION))
    vectors_MH = _array(folder, files, MEMORY_VECTORS)
    return QueryMemory(vectors_MH, index, labels, facts, files.manifest.model, pool.threads), texts


def _load_graph(folder: Path, files: BundleFiles, name: str, ef: int, pool: ThreadPool) -> HnswIndex:
    return HnswIndex.load(folder / name, *files.manifest.graphs[name], ef, pool, verified=files.graphs[name])


def _array(folder: Path, files: BundleFiles, name: str) -> NDArray[np.float32]:
    return vectors_in(files.contents[name], folder / name, files.manifest.arrays[name])
