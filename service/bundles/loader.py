"""Open a bundle by name: fetch it, check the memory, start an engine."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event

from prometheus_client import CollectorRegistry

from retrieval.bundle.manifest import read_manifest
from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import BundleError
from service.bundles.generation import Beside, Generation
from service.bundles.memory_check import check_memory
from service.bundles.store_access import Source
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from service.settings import Settings

MakeRoom = Callable[[], Awaitable[bool]]


class Opener:
    """Open the bundles of a source, each as a generation with its own number."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        source: Source,
        paused: Callable[[], Sequence[str]],
        supervisor: Supervisor,
    ) -> None:
        """Set up the opener. `paused` returns the ids of labels that must not be shown."""
        self._settings = settings
        self._metrics = metrics
        self._source = source
        self._paused = paused
        self._supervisor = supervisor
        self._numbers = 0

    async def open(
        self, name: str, crashes: Callable[[Generation], None], beside: Beside, make_room: MakeRoom
    ) -> Generation:
        """Open a generation to serve. `make_room` frees memory if it can and returns whether it did.

        Raises BundleError.
        """
        folder = await self._bring(name)
        try:
            await self._check_memory(folder)
        except BundleError:
            if not await make_room():
                raise
            await self._check_memory(folder)
        return await self._start(folder, self._settings, self._metrics, crashes, beside)

    async def open_aside(self, name: str, crashes: Callable[[Generation], None], beside: Beside) -> Generation:
        """Open a generation for comparison, with one thread and separate metrics. Raises BundleError."""
        folder = await self._bring(name)
        await self._check_memory(folder)
        settings = self._settings.model_copy(update={"threads": 1, "search_threads": 1, "lanes": 1})
        apart = Metrics(CollectorRegistry())  # the service's metrics count live traffic only
        return await self._start(folder, settings, apart, crashes, beside)

    async def _bring(self, name: str) -> Path:
        """Return the bundle's folder, downloaded if needed; cancellation ends the download."""
        given_up = Event()
        try:
            return await self._supervisor.read(partial(self._source.bring, name, given_up.is_set))
        finally:
            given_up.set()

    async def _check_memory(self, folder: Path) -> None:
        if self._settings.memory_check:
            trusted = trusted_keys(self._settings.trusted_keys)
            manifest = await self._supervisor.read(partial(read_manifest, folder, trusted))
            check_memory(folder.name, manifest, self._settings.cgroups, trusted)

    async def _start(
        self, folder: Path, settings: Settings, metrics: Metrics, crashes: Callable[[Generation], None], beside: Beside
    ) -> Generation:
        self._numbers += 1
        parts = (settings, metrics, self._paused, crashes, beside, self._supervisor)
        return await Generation(self._numbers, folder, *parts).open()
