"""An index whose vectors are in a Milvus collection. A search asks the server for the nearest ones.

Suffixes: Q queries, K results, W width.
"""

from typing import Protocol

from retrieval.errors import BundleError
from retrieval.search.indexes import FullScans, Rows, Vectors, checked

MAX_RESULTS = 16_384  # of one search, Milvus' limit


class CandidateSource(Protocol):
    """Searches one collection; safe to use from several threads."""

    def search(self, query_QW: Vectors, k: int, ef: int) -> tuple[Rows, Vectors]:
        """Return rows and inner products of k vectors per query, best first. Raises IndexUnavailable."""

    def count(self) -> int:
        """Return the number of vectors in the collection. Raises IndexUnavailable, and BundleError if it is missing."""

    def close(self) -> None:
        """Close connections and end threads."""


class MilvusIndex:
    """A graph of projected vectors [N, W] in Milvus."""

    is_exact = False
    max_results = MAX_RESULTS

    def __init__(self, source: CandidateSource, size: int, dim: int, ef: int) -> None:
        """Search `source`, which must have `size` vectors of width `dim`, with at least `ef` candidates."""
        self._source, self.size, self.dim, self.ef = source, size, dim, ef
        self.full_scans = FullScans()  # stays 0: too few candidates are an error

    def search(self, query_QD: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return rows and inner products of min(k, size) near vectors per query, best first.

        At most MAX_RESULTS. Raises BadInput and IndexUnavailable.
        """
        query_QD, k = checked(query_QD, k, self.dim), min(k, self.size, self.max_results)
        return self._source.search(query_QD, k, max(self.ef, k))

    def check_count(self) -> None:
        """Compare the number of vectors in the collection with the bundle's. Raises BundleError, IndexUnavailable."""
        if (count := self._source.count()) != self.size:
            raise BundleError(
                f"the collection in Milvus has {count} vectors, but the bundle has {self.size}. Fill it again with "
                "`diptych bundles load`."
            )

    def close(self) -> None:
        """Close the connection to the server."""
        self._source.close()
