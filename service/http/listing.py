"""Describe the served bundle, the bundles of the store, and the open generations."""

from functools import partial

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
    if served is None or (opened := served.info) is None:
        raise unavailable(f"The service is not ready: {manager.readiness().detail}.")
    return About(
        bundle=served.name,
        labels=opened.labels,
        weight=opened.weight,
        attributes=[Attribute(name=one.name, values=one.values, more=one.more) for one in opened.attributes],
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
        bundles=[one.model_copy(update={"trouble": one.trouble and manager.public(one.trouble)}) for one in stored],
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
