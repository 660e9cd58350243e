"""Check that a bundle fits into free memory before it is loaded. Otherwise the kernel may kill the serving engine."""

from collections.abc import Sequence
from pathlib import Path

from retrieval.bundle.manifest import (
    INDEX,
    LABELS,
    MEMORY_INDEX,
    MEMORY_QUERIES,
    MEMORY_VECTORS,
    NODES,
    QUERY_ENCODER,
    TOKENIZER,
    VECTORS,
    Manifest,
    level_file,
    parents_file,
)
from retrieval.errors import BundleError
from retrieval.system.limits import free_memory
from service.engine.options import LABEL_CACHE_BYTES

# Measured with the bundles of the example, rounded up, see docs/decisions/0045.
ENGINE_BYTES = 96 << 20
ENCODER_TIMES = {"float32": 1.2, "int8": 1.2, "float16": 2.2}  # float16 weights are stored in float32 as well
TOKENIZER_TIMES = 10
NODES_TIMES = 6  # the file's numbers, the labels by node, where each node begins, and its first label; or a label tree
MEMORY_TIMES = 3  # the file, and the arrays that are made to check it
FLOAT32_BYTES = 4
HOST_WEIGHTS = 2  # copies of the weights in a host: the file, and the arrays that all engines use
INDEX_TIMES = 2  # while it is loaded: the copy that was verified, and hnswlib's own


def needed_memory(manifest: Manifest, trusted: Sequence[str] = (), engines: int = 1) -> int:
    """Return the most bytes that the engines need for a bundle.

    Several engines share all files; each has its own session, which may have copies of the weights. With an index in
    Milvus they share nothing.

    Vectors count only with `trusted` keys, which require a copy. Otherwise they are a mapped file when memory is short,
    see retrieval/bundle/verified_files.
    """
    if engines > 1 and manifest.graph is not None and manifest.graph.kind == "milvus":
        return engines * needed_memory(manifest, trusted)
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    weights = sum(size for name, size in sizes.items() if name.startswith(QUERY_ENCODER))
    encoder = ENCODER_TIMES[manifest.precision] * weights
    vectors = sizes[VECTORS] + sizes.get(MEMORY_VECTORS, 0)
    copied = sizes[LABELS] + (vectors if trusted else 0) + NODES_TIMES * sizes.get(NODES, 0)
    if manifest.cascade is None and manifest.index.kind == "exact":
        copied += FLOAT32_BYTES * manifest.labels.count * manifest.label_dim  # in any case in memory, see loading
    copied += MEMORY_TIMES * sizes.get(MEMORY_QUERIES, 0)
    graphs = INDEX_TIMES * (sizes.get(INDEX, 0) + sizes.get(MEMORY_INDEX, 0))
    levels = range(len(manifest.parents))
    cascade = sum(sizes[level_file(level)] + NODES_TIMES * sizes[parents_file(level + 1)] for level in levels)
    if engines > 1:
        encoder = HOST_WEIGHTS * weights + engines * encoder
    files = graphs + cascade + encoder + TOKENIZER_TIMES * sizes[TOKENIZER] + copied
    return int(engines * (ENGINE_BYTES + LABEL_CACHE_BYTES) + files)


def check_memory(name: str, manifest: Manifest, groups: Path, trusted: Sequence[str] = (), engines: int = 1) -> None:
    """Check that a bundle fits into the free memory of machine and container. Raises BundleError."""
    needed, room = needed_memory(manifest, trusted, engines), free_memory(groups)
    if needed > room.free:
        raise BundleError(
            f"{name} needs about {_megabytes(needed)} of memory and {_megabytes(room.free)} are free ({room.limit}). "
            "Give the service more memory, or set DIPTYCH_MEMORY_CHECK=false to load it anyway."
        )


def _megabytes(size: int) -> str:
    return f"{-(-size >> 20):,} MB"
