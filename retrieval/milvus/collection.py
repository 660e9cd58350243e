"""The collection of a bundle: its name, its vectors, and how it is filled, checked, activated and removed.

Suffixes: L labels, N nodes of the index, D vector width, W width of the projection.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.bundle.manifest import NODES, PROJECTION, VECTOR_SCALES, VECTORS, Manifest
from retrieval.errors import BundleError
from retrieval.milvus.server import ID, VECTOR, GraphFacts, MilvusServer
from retrieval.milvus.settings import MilvusSettings, milvus_settings
from retrieval.quantized_vectors import LabelVectors
from retrieval.search.distinct_vectors import Nodes
from retrieval.search.indexes import Vectors
from retrieval.system.progress import Progress

ROWS_PER_CALL = 4_096  # of at most 64 MB, the limit of a gRPC message
ROWS_PER_GROUP = 65_536  # of a Parquet file
POLL_SECONDS = 0.5
INDEX_SECONDS = 4 * 3600.0  # until the server has indexed what was inserted


def collection_name(manifest: Manifest, prefix: str) -> str:
    """Return the name of a bundle's collection: the hash of its vectors, so equal names have equal contents."""
    names = (VECTORS, VECTOR_SCALES, PROJECTION, NODES)
    hashes = [manifest.files[name].sha256 for name in names if name in manifest.files]
    facts = (*hashes, str(manifest.index.m), str(manifest.index.ef_construction))
    return f"{prefix}_{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:24]}"


def graph_facts(manifest: Manifest) -> GraphFacts:
    """Return the facts of a bundle's graph in Milvus. Raises BundleError for another kind of index."""
    index = manifest.index
    if index.kind != "milvus" or index.m is None or index.ef_construction is None:
        raise BundleError(f"the bundle's index is of kind {index.kind!r}. Export it with --index milvus.")
    return GraphFacts(manifest.index_dim, index.m, index.ef_construction)


def projected_blocks(vectors_LD: LabelVectors, nodes: Nodes | None, projection_DW: Vectors) -> Iterator[Vectors]:
    """Yield the projections [N, W] of one vector per node, in the order of the nodes.

    Computed in float64, as the exported graph's.
    """
    row_N = np.arange(len(vectors_LD)) if nodes is None else nodes.representatives
    for start in range(0, len(row_N), ROWS_PER_CALL):
        block_BD = np.asarray(vectors_LD[row_N[start : start + ROWS_PER_CALL]], np.float64)
        yield np.asarray(block_BD @ projection_DW.astype(np.float64), np.float32)


def write_rows(blocks: Iterable[Vectors], width: int, path: Path) -> int:
    """Write ids and vectors as a Parquet file for Milvus' bulk insert; return the number of rows."""
    schema = pa.schema([(ID, pa.int64()), (VECTOR, pa.list_(pa.float32()))])
    rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for block_BW in blocks:
            ids = pa.array(np.arange(rows, rows + len(block_BW)))
            offsets = pa.array(np.arange(0, block_BW.size + 1, width, dtype=np.int32))
            vectors = pa.ListArray.from_arrays(offsets, pa.array(block_BW.reshape(-1)))
            writer.write_table(pa.table([ids, vectors], schema=schema), row_group_size=ROWS_PER_GROUP)
            rows += len(block_BW)
    return rows


class BundleCollection:
    """The collection of one bundle on a server."""

    def __init__(self, server: MilvusServer, manifest: Manifest, bundle: str) -> None:
        """Use the collection of the bundle with this manifest. Raises BundleError for another kind of index."""
        self.facts, self.size = graph_facts(manifest), manifest.index_size
        self.name = collection_name(manifest, server.settings.prefix)
        self._server, self._bundle = server, bundle

    def is_filled(self) -> bool:
        """Return whether the collection exists and has every vector. Raises IndexUnavailable."""
        return self._server.has(self.name) and self._server.count(self.name) == self.size

    def fill(self, blocks: Iterable[Vectors], progress: Progress) -> None:
        """Create the collection, insert the vectors of all nodes, and wait until they are indexed.

        A collection that is incomplete is filled again. Raises BundleError and IndexUnavailable.
        """
        self._create()
        done = 0
        for block_BW in blocks:
            self._server.insert(self.name, done, block_BW)
            done += len(block_BW)
            progress(done, self.size)
        self._finish()

    def fill_from(self, file: str) -> None:
        """Create the collection and let the server read a Parquet file of its bucket. Raises as `fill` does."""
        self._create()
        job = self._server.import_file(self.name, file)
        while (state := self._server.import_state(job))[0] != "Completed":
            if state[0].startswith("Failed"):
                raise BundleError(f"Milvus cannot import {file!r} ({state[1]}). Check its path in Milvus' bucket.")
            time.sleep(POLL_SECONDS)
        self._finish()

    def _create(self) -> None:
        if self._server.has(self.name):
            if self._server.aliases(self.name):
                raise BundleError(f"collection {self.name!r} is active but incomplete. Activate another bundle first.")
            self._server.drop(self.name)
        self._server.create(self.name, self.facts, f"labels of the Diptych bundle {self._bundle}")

    def _finish(self) -> None:
        self._server.finish(self.name)
        deadline = time.monotonic() + INDEX_SECONDS
        while (missing := self._server.unindexed(self.name)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        count = self._server.count(self.name)
        if missing or count != self.size:
            raise BundleError(
                f"collection {self.name!r} has {count} vectors, {missing} of them not indexed, but the bundle has "
                f"{self.size}. Load it again."
            )


def activate_collection(manifest: Manifest, bundle: str, settings: MilvusSettings | None = None) -> None:
    """Move the alias to a bundle's collection, if its index is in Milvus and the collection is complete.

    Raises BundleError and IndexUnavailable.
    """
    if manifest.graph is None or manifest.graph.kind != "milvus":
        return
    with_server(lambda server: _move_alias(server, BundleCollection(server, manifest, bundle), bundle), settings)


def _move_alias(server: MilvusServer, collection: BundleCollection, bundle: str) -> None:
    if not collection.is_filled():
        raise BundleError(
            f"Milvus at {server.settings.url} does not have all {collection.size} vectors of bundle {bundle!r}. Fill "
            "its collection with `diptych bundles load`."
        )
    server.set_alias(collection.name)


def prune_collections(manifests: Iterable[Manifest], settings: MilvusSettings) -> list[str]:
    """Remove the collections of the prefix that no bundle of the store uses and no alias names; return their names."""
    used = {
        collection_name(manifest, settings.prefix)
        for manifest in manifests
        if manifest.graph is not None and manifest.graph.kind == "milvus"
    }

    def prune(server: MilvusServer) -> list[str]:
        unused = [name for name in server.collections() if name not in used and not server.aliases(name)]
        for name in unused:
            server.drop(name)
        return unused

    removed: list[str] = with_server(prune, settings)
    return removed


def with_server(work: Callable[[MilvusServer], Any], settings: MilvusSettings | None = None) -> Any:
    """Connect to the server of the settings (default: the environment's), return the result of `work`, disconnect."""
    server = MilvusServer(settings or milvus_settings())
    try:
        return work(server)
    finally:
        server.close()
