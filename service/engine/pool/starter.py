"""Start the engines of one bundle: one that loads it, or several that are forked from the host that has loaded it."""

import asyncio
from pathlib import Path

from retrieval.errors import BundleError
from service.engine.client import EngineObserver, EngineProcess
from service.engine.load_policy import LoadPolicy
from service.engine.pool.host_process import BundleHost
from service.engine.pool.index_server import collection_of
from service.settings import Settings


class EngineStarter:
    """The engines of one bundle, and their host if there are several."""

    def __init__(self) -> None:
        self._host: BundleHost | None = None
        self._lock = asyncio.Lock()

    @property
    def pids(self) -> list[int]:
        """Process id of the host, if there is one."""
        return [self._host.pid] if self._host and not self._host.has_ended else []

    async def start(
        self, folder: Path, settings: Settings, observer: EngineObserver, policy: LoadPolicy
    ) -> EngineProcess:
        """Start an engine and wait until it can answer; start a host first if it is needed. Raises BundleError.

        Engines whose index is in Milvus have no host: each has its own sockets to the server.
        """
        if settings.engines == 1 or await _is_in_milvus(folder, settings):
            return await EngineProcess.start(folder, settings, observer, policy)
        async with self._lock:
            if self._host is None or self._host.has_ended:
                await self._end_host()
                self._host = await BundleHost.start(folder, settings, policy)
            host = self._host
        return await EngineProcess.start(folder, settings, observer, policy, host)

    async def close(self) -> None:
        """End the host, and with it its engines."""
        async with self._lock:
            await self._end_host()

    async def _end_host(self) -> None:
        host, self._host = self._host, None
        if host:
            await host.end()


async def _is_in_milvus(folder: Path, settings: Settings) -> bool:
    try:
        return await collection_of(folder, settings) is not None
    except TimeoutError as error:
        raise BundleError(f"{folder.name} was not read within {settings.load_seconds:g} s.") from error
