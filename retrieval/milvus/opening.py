"""Open the index of a bundle whose candidates come from Milvus."""

from collections.abc import Sequence

from retrieval.bundle.manifest import Manifest
from retrieval.milvus.collection import collection_name, graph_facts
from retrieval.milvus.index import CandidateSource, MilvusIndex
from retrieval.milvus.pipe import PipedSource
from retrieval.milvus.settings import milvus_settings
from retrieval.milvus.source import DirectSource


def open_milvus_index(manifest: Manifest, ef: int, sockets: Sequence[int] = ()) -> MilvusIndex:
    """Open the bundle's collection through the sockets of a host process, or without any, from this process.

    Raises BundleError if the collection is missing or incomplete, IndexUnavailable, and BadInput without settings.
    """
    source: CandidateSource
    if sockets:
        source = PipedSource(sockets)
    else:
        settings = milvus_settings()
        source = DirectSource(settings, collection_name(manifest, settings.prefix))
    index = MilvusIndex(source, manifest.index_size, graph_facts(manifest).width, ef)
    try:
        index.check_count()
    except BaseException:
        index.close()
        raise
    return index
