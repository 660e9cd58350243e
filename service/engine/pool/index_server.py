"""Find the Milvus collection of a bundle whose index is not in its folder."""

import asyncio
from pathlib import Path

from retrieval.bundle.manifest import read_manifest
from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import BundleError
from retrieval.milvus.collection import collection_name
from service.observe.detached_thread import run_detached
from service.settings import Settings


async def collection_of(folder: Path, settings: Settings) -> str | None:
    """Return the collection of a bundle whose index is in Milvus; None for another one.

    Raises BundleError and TimeoutError.
    """
    async with asyncio.timeout(settings.load_seconds):  # in a thread: a network file system may not respond
        return await run_detached(lambda: _collection(folder, settings))


def _collection(folder: Path, settings: Settings) -> str | None:
    manifest = read_manifest(folder, trusted_keys(settings.trusted_keys))
    if manifest.graph is None or manifest.graph.kind != "milvus":
        return None
    if not settings.milvus_url:
        raise BundleError(f"the index of {folder.name} is in Milvus. Set DIPTYCH_MILVUS_URL to the server's address.")
    return collection_name(manifest, settings.milvus_prefix)
