"""A client of a Milvus server, with a time limit for every call. The only module that imports pymilvus.

Suffixes: Q queries, K results, N vectors, W width.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from retrieval.errors import BadInput, IndexUnavailable, one_line
from retrieval.milvus.settings import MilvusSettings
from retrieval.search.indexes import Rows, Vectors

if TYPE_CHECKING:
    from pymilvus import MilvusClient

ID, VECTOR = "id", "vector"
CHANGE_SECONDS = 60.0  # of a call that changes a collection
Result = TypeVar("Result")


class GraphFacts(NamedTuple):
    """Width of the vectors, links per node, and candidates per insertion, of a graph in Milvus."""

    width: int
    m: int
    ef_construction: int


class MilvusServer:
    """One connection to a Milvus server, opened at the first call and again after a failure. Use it in one thread."""

    def __init__(self, settings: MilvusSettings) -> None:
        """Use the server of the settings. Raises BadInput if pymilvus is not installed."""
        try:
            import pymilvus
        except ImportError as error:
            raise BadInput(f"pymilvus cannot be imported ({error}). Install 'diptych[milvus]'.") from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs each failure with its stack; ours are errors
        self._pymilvus: Any = pymilvus
        self.settings = settings
        self._client: MilvusClient | None = None

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def search(self, collection: str, query_QW: Vectors, k: int, ef: int) -> tuple[Rows, Vectors]:
        """Return rows and inner products of the k nearest vectors per query, best first.

        Raises IndexUnavailable, also if there are fewer than k, which happens while a collection is being loaded.
        """
        if not len(query_QW):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        parameters = {"metric_type": "IP", "params": {"ef": max(ef, k)}}
        # A collection does not change after it was loaded, so no search waits for the newest changes.
        if self._client is None:  # after an outage, a collection may have to be loaded again
            self.load(collection)
        found = self._call(
            lambda client: client.search(
                collection, data=list(query_QW), anns_field=VECTOR, limit=k, search_params=parameters,
                consistency_level="Eventually", timeout=self.settings.seconds,
            )
        )  # fmt: skip
        if any(len(hits) < k for hits in found) or len(found) != len(query_QW):
            least = min(map(len, found), default=0)
            raise IndexUnavailable(f"Milvus returned {least} candidates of {k} from collection {collection!r}.")
        rows = np.asarray([[hit[ID] for hit in hits] for hits in found], np.int64)
        return rows, np.asarray([[hit["distance"] for hit in hits] for hits in found], np.float32)

    def collections(self) -> list[str]:
        """Return the names of all collections with the prefix of the settings. Raises IndexUnavailable."""
        names = self._call(lambda client: client.list_collections(timeout=CHANGE_SECONDS))
        return sorted(name for name in names if name.startswith(f"{self.settings.prefix}_"))

    def has(self, collection: str) -> bool:
        """Return whether a collection exists. Raises IndexUnavailable."""
        return bool(self._call(lambda client: client.has_collection(collection, timeout=CHANGE_SECONDS)))

    def create(self, collection: str, facts: GraphFacts, description: str) -> None:
        """Create an empty collection with a graph index. Raises IndexUnavailable."""
        types = self._pymilvus.DataType

        def create(client: "MilvusClient") -> None:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
            schema.add_field(ID, types.INT64, is_primary=True)
            schema.add_field(VECTOR, types.FLOAT_VECTOR, dim=facts.width)
            index = client.prepare_index_params()
            parameters = {"M": facts.m, "efConstruction": facts.ef_construction}
            index.add_index(VECTOR, index_type="HNSW", metric_type="IP", params=parameters)
            client.create_collection(
                collection, schema=schema, index_params=index, consistency_level="Strong", timeout=CHANGE_SECONDS
            )

        self._call(create)

    def insert(self, collection: str, start: int, vectors_NW: Vectors) -> None:
        """Insert vectors with the ids from `start`. Raises IndexUnavailable."""
        rows = [{ID: start + place, VECTOR: vector_W} for place, vector_W in enumerate(vectors_NW)]
        self._call(lambda client: client.insert(collection, rows, timeout=CHANGE_SECONDS))

    def finish(self, collection: str) -> None:
        """Write what was inserted to the server's storage, and load the collection. Raises IndexUnavailable."""
        self._call(lambda client: client.flush(collection, timeout=CHANGE_SECONDS))
        self.load(collection)

    def load(self, collection: str) -> None:
        """Load a collection into the server's memory, unless it is there. Raises IndexUnavailable."""
        self._call(lambda client: client.load_collection(collection, timeout=CHANGE_SECONDS))

    def count(self, collection: str) -> int:
        """Return the number of vectors that a search can find. Raises IndexUnavailable."""
        self.load(collection)
        found = self._call(
            lambda client: client.query(
                collection, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=CHANGE_SECONDS
            )
        )
        return int(found[0]["count(*)"])

    def unindexed(self, collection: str) -> int:
        """Return the number of vectors that are not in the graph yet. Raises IndexUnavailable."""
        facts = self._call(lambda client: client.describe_index(collection, VECTOR, timeout=CHANGE_SECONDS))
        return int((facts or {}).get("pending_index_rows", 0))

    def import_file(self, collection: str, file: str) -> int:
        """Begin the bulk insert of a Parquet file in the server's bucket; return the job. Raises IndexUnavailable."""
        return int(self._call(lambda client: _handler(client).do_bulk_insert(collection, "", [file])))

    def import_state(self, job: int) -> tuple[str, str]:
        """Return the state of a bulk insert and the reason for a failure. Raises IndexUnavailable."""
        state = self._call(lambda client: _handler(client).get_bulk_insert_state(job, CHANGE_SECONDS))
        return state.state_name, state.failed_reason

    def drop(self, collection: str) -> None:
        """Remove a collection. Raises IndexUnavailable."""
        self._call(lambda client: client.drop_collection(collection, timeout=CHANGE_SECONDS))

    def aliases(self, collection: str) -> list[str]:
        """Return the aliases of a collection. Raises IndexUnavailable."""
        found = self._call(lambda client: client.list_aliases(collection, timeout=CHANGE_SECONDS))
        return list(found["aliases"])

    def set_alias(self, collection: str) -> None:
        """Move the alias of the active bundle to a collection, in one step. Raises IndexUnavailable."""
        alias = self.settings.alias
        holder = next((name for name in self.collections() if alias in self.aliases(name)), None)
        if holder is None:
            self._call(lambda client: client.create_alias(collection, alias, timeout=CHANGE_SECONDS))
        elif holder != collection:
            self._call(lambda client: client.alter_alias(collection, alias, timeout=CHANGE_SECONDS))

    def _call(self, work: "Callable[[MilvusClient], Result]") -> Result:
        """Call the server. Raises IndexUnavailable; the next call then opens another connection."""
        import grpc

        failures = (self._pymilvus.MilvusException, grpc.RpcError, OSError)
        try:
            if self._client is None:
                self._client = self._connected()
            return work(self._client)
        except failures as error:
            self._forget()
            where = f"Milvus at {self.settings.url}"
            raise IndexUnavailable(f"{where} does not answer ({_reason(error)}). Check that it runs.") from error

    def _connected(self) -> "MilvusClient":
        settings = self.settings
        client: MilvusClient = self._pymilvus.MilvusClient(
            settings.url, token=settings.token, timeout=settings.seconds, dedicated=True
        )
        return client

    def _forget(self) -> None:
        """Drop the connection. A broken channel would wait for longer and longer before it connects again."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            client.close()
        except (self._pymilvus.MilvusException, OSError, ValueError) as error:
            logging.getLogger("diptych.milvus").debug("a connection could not be closed: %s", error)


def _handler(client: "MilvusClient") -> Any:
    return client._get_connection()


def _reason(error: BaseException) -> str:
    return one_line(getattr(error, "message", "") or error)[:300]


def batches(vectors_NW: Vectors, size: int) -> Iterable[tuple[int, Vectors]]:
    """Yield the first row and the vectors of each batch of up to `size` vectors."""
    for start in range(0, len(vectors_NW), size):
        yield start, np.ascontiguousarray(vectors_NW[start : start + size])
