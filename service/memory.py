"""Whether a bundle fits into memory beside what is there, before it is loaded: when memory is short, the kernel may end
the engine that serves.
"""

from collections.abc import Sequence
from pathlib import Path

from retrieval.errors import BundleError
from retrieval.limits import free_memory
from retrieval.manifest import INDEX, LABELS, NODES, QUERY_ENCODER, TOKENIZER, VECTORS, Manifest

# Measured with the example's bundles, rounded up: an engine's own memory beside each file's, see docs/decisions/0045.
ENGINE_BYTES = 96 << 20
ENCODER_TIMES = {"float32": 1.2, "int8": 1.2, "float16": 2.2}  # of the last, weights are kept in float32 too
TOKENIZER_TIMES = 10
NODES_TIMES = 6  # the file's numbers, the labels by node, where each node begins, and its first label
LABEL_CACHE_BYTES = 32 << 20  # the JSON of labels that an engine keeps, see label_cache.py
INDEX_TIMES = 2  # while it is loaded: the copy that was verified, and hnswlib's own


def needed_memory(manifest: Manifest, trusted: Sequence[str] = ()) -> int:
    """Bytes that an engine takes for a bundle at the most.

    Vectors count only where `trusted` keys demand that they are copied; elsewhere they stay a mapped file if memory is
    short, see retrieval/bundle_files.
    """
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    encoder = ENCODER_TIMES[manifest.precision] * sizes[QUERY_ENCODER]
    copied = sizes[LABELS] + (sizes[VECTORS] if trusted else 0) + NODES_TIMES * sizes.get(NODES, 0)
    files = INDEX_TIMES * sizes[INDEX] + encoder + TOKENIZER_TIMES * sizes[TOKENIZER] + copied
    return int(ENGINE_BYTES + LABEL_CACHE_BYTES + files)


def check_memory(name: str, manifest: Manifest, groups: Path, trusted: Sequence[str] = ()) -> None:
    """Raise BundleError with the figures when a bundle does not fit into what machine and container have left."""
    needed, room = needed_memory(manifest, trusted), free_memory(groups)
    if needed > room.free:
        raise BundleError(
            f"{name} takes about {_megabytes(needed)} of memory and {_megabytes(room.free)} are free ({room.bound}). "
            "Give the service more, or set DIPTYCH_MEMORY_CHECK=false to try all the same."
        )


def _megabytes(size: int) -> str:
    return f"{-(-size >> 20):,} MB"
