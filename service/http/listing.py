"""Describe the served bundle, the bundles of the store, and the open generations."""

from functools import partial

from msgspec.structs import asdict

from retrieval.errors import BundleError, DiptychError, Unreachable
from retrieval.store.local import Store
from service.bundles.generation import Generation
from service.bundles.manager import BundleManager
from service.bundles.store_access import StoreAccess
from service.errors import Refusal, unavailable
from service.http.admin_schemas import BundlesResponse, ServedGeneration, State, StoredBundle
from service.http.schemas import About, Attribute
from service.settings import Settings


def about(manager: BundleManager, settings: Settings) -> About:
    """Describe the served bundle and the limits of a request. Raises Refusal 503 while there is no engine."""
    served = manager.current
    if served is None or (info := served.info) is None:
        raise unavailable(f"The service is not ready: {manager.readiness().detail}.")
    attributes = [Attribute(**asdict(attribute)) for attribute in info.attributes]
    return About(
        bundle=served.name,
        labels=info.labels,
        weight=info.weight,
        fixed_weight=info.fixed_weight,
        memory_weight=info.memory_weight,
        attributes=attributes,
        max_k=settings.max_k,
        max_query_chars=settings.max_query_chars,
        administration=bool(settings.administrators),
    )


async def list_bundles(manager: BundleManager) -> BundlesResponse:
    """List the store's bundles and the open generations. Raises Refusal 422 when the store cannot be read."""
    try:
        stored = await manager.supervisor.read(partial(_stored, manager.store))
    except (DiptychError, OSError) as error:
        raise Refusal(422, "bad_store", manager.public(f"The store cannot be listed: {error}")) from error
    opened: list[tuple[State, Generation | None]] = [("serving", manager.current), ("kept", manager.kept)]
    opened.append(("compared", manager.comparison.generation))
    opened += [("draining", generation) for generation in manager.draining]
    return BundlesResponse(
        bundles=[_without_paths(bundle, manager) for bundle in stored],
        generations=[
            ServedGeneration(
                number=generation.number,
                bundle=generation.name,
                state=state,
                labels=generation.info.labels if generation.info else None,
                unfinished=generation.batcher.unfinished,
            )
            for state, generation in opened
            if generation
        ],
        preparing=manager.preparing,
    )


def _without_paths(bundle: StoredBundle, manager: BundleManager) -> StoredBundle:
    """Return a bundle whose `trouble` does not show the local path of the store."""
    return bundle.model_copy(update={"trouble": bundle.trouble and manager.public(bundle.trouble)})


def _stored(source: StoreAccess) -> list[StoredBundle]:
    names, store = source.names(), source.local_store
    try:
        active = source.active()
    except Unreachable:
        active = store.active()
    local = set(store.bundles())
    stored = [
        _described(store, name, name == active)
        if name in local
        else StoredBundle(name=name, active=name == active, trouble="not fetched yet; activate it to fetch it")
        for name in names
    ]
    return sorted(stored, key=lambda one: one.created or "")  # a remote store lists names alphabetically


def _described(store: Store, name: str, active: bool) -> StoredBundle:
    try:
        manifest = store.manifest(name)
    except BundleError as error:
        return StoredBundle(name=name, active=active, trouble=str(error))
    size = sum(entry.bytes for entry in manifest.files.values())
    return StoredBundle(name=name, active=active, created=manifest.created, labels=manifest.labels.count, bytes=size)
