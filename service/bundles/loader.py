"""Open a bundle by name: fetch it, check the memory, start an engine."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from threading import Event

from prometheus_client import CollectorRegistry

from retrieval.bundle.manifest import read_manifest
from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import BundleError
from service.bundles.generation import Generation, GenerationObserver
from service.bundles.memory_check import check_memory
from service.bundles.paused_labels import PausedBroadcaster
from service.bundles.store_access import StoreAccess
from service.engine.load_policy import LoadPolicy
from service.observe.metrics import Metrics
from service.observe.supervisor import Supervisor
from service.settings import Settings

ChoosePolicy = Callable[[Generation], LoadPolicy]
FreeMemory = Callable[[], Awaitable[bool]]


class BundleLoader:
    """Open the bundles of a store, each as a generation with its own number."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        store: StoreAccess,
        paused: PausedBroadcaster,
        supervisor: Supervisor,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._store = store
        self._paused = paused
        self._supervisor = supervisor
        self._last_number = 0

    async def open(
        self, name: str, observer: GenerationObserver, choose_policy: ChoosePolicy, free_memory: FreeMemory
    ) -> Generation:
        """Open a generation to serve. `free_memory` frees memory if it can and returns whether it did.

        Raises BundleError.
        """
        folder = await self._fetch(name)
        try:
            await self._check_memory(folder, self._settings.engines)
        except BundleError:
            if not await free_memory():
                raise
            await self._check_memory(folder, self._settings.engines)
        return await self._start(folder, self._settings, self._metrics, observer, choose_policy)

    async def open_for_comparison(
        self, name: str, observer: GenerationObserver, choose_policy: ChoosePolicy
    ) -> Generation:
        """Open a generation for comparison, with one engine and thread and separate metrics. Raises BundleError."""
        folder = await self._fetch(name)
        await self._check_memory(folder, engines=1)
        single = ("engines", "threads", "search_threads", "worker_threads")
        settings = self._settings.model_copy(update=dict.fromkeys(single, 1))
        separate_metrics = Metrics(CollectorRegistry())  # the service's metrics count live traffic only
        return await self._start(folder, settings, separate_metrics, observer, choose_policy)

    async def _fetch(self, name: str) -> Path:
        """Return the bundle's folder, downloaded if needed; cancellation ends the download."""
        cancelled = Event()
        try:
            return await self._supervisor.read(partial(self._store.fetch, name, cancelled.is_set))
        finally:
            cancelled.set()

    async def _check_memory(self, folder: Path, engines: int) -> None:
        if self._settings.memory_check:
            trusted = trusted_keys(self._settings.trusted_keys)
            manifest = await self._supervisor.read(partial(read_manifest, folder, trusted))
            check_memory(folder.name, manifest, self._settings.cgroups, trusted, engines)

    async def _start(
        self,
        folder: Path,
        settings: Settings,
        metrics: Metrics,
        observer: GenerationObserver,
        choose_policy: ChoosePolicy,
    ) -> Generation:
        self._last_number += 1
        generation = Generation(
            self._last_number,
            folder,
            settings,
            metrics=metrics,
            supervisor=self._supervisor,
            paused=self._paused,
            observer=observer,
            choose_policy=choose_policy,
        )
        return await generation.open()
