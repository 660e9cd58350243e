"""Search one collection from this process, with waiting and a circuit breaker.

Suffixes: Q queries, K results, W width.
"""

from threading import Lock, local

from retrieval.errors import BundleError
from retrieval.milvus.breaker import CircuitBreaker
from retrieval.milvus.server import MilvusServer
from retrieval.milvus.settings import MilvusSettings
from retrieval.search.indexes import Rows, Vectors


class DirectSource:
    """Searches a collection; each thread has its own connection, and all share one circuit breaker."""

    def __init__(self, settings: MilvusSettings, collection: str) -> None:
        """Use a collection of the server in the settings. Raises BadInput if pymilvus is not installed."""
        self._settings, self._collection = settings, collection
        self._breaker = CircuitBreaker(settings.wait_seconds)
        self._threads, self._lock = local(), Lock()
        self._servers: list[MilvusServer] = []
        self._server()  # so that a missing package is reported now

    def search(self, query_QW: Vectors, k: int, ef: int) -> tuple[Rows, Vectors]:
        """Search as `CandidateSource` describes."""
        return self._breaker.call(lambda: self._server().search(self._collection, query_QW, k, ef))

    def count(self) -> int:
        """Count as `CandidateSource` describes."""
        server = self._server()
        if not self._breaker.call(lambda: server.has(self._collection)):
            raise BundleError(
                f"Milvus at {self._settings.url} has no collection {self._collection!r} for this bundle. Fill it with "
                "`diptych bundles load`."
            )
        return self._breaker.call(lambda: server.count(self._collection))

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            servers, self._servers = self._servers, []
        for server in servers:
            server.close()

    def _server(self) -> MilvusServer:
        server: MilvusServer | None = getattr(self._threads, "server", None)
        if server is None:
            server = self._threads.server = MilvusServer(self._settings)
            with self._lock:
                self._servers.append(server)
        return server
