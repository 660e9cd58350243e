"""What there is: to ask of the served bundle, and, for an administrator, in the store and opened of it."""

from functools import partial

from retrieval.errors import BundleError, DiptychError, Unreachable
from retrieval.store.local import Store
from service.bundles.generation import Generation
from service.bundles.manager import BundleManager
from service.bundles.store_access import StoreAccess
from service.errors import Refusal, unavailable
from service.http.schemas import About, Attribute, BundlesResponse, ServedGeneration, State, StoredBundle
from service.settings import Settings


def about(generations: BundleManager, settings: Settings) -> About:
    """What there is to ask the served bundle. Raises Refusal 503 while there is no engine to say so."""
    served = generations.current
    if served is None or (opened := served.info) is None:
        raise unavailable(f"The service is not ready: {generations.readiness().detail}.")
    return About(
        bundle=served.name,
        labels=opened.labels,
        weight=opened.weight,
        attributes=[Attribute(name=one.name, values=one.values, more=one.more) for one in opened.attributes],
        max_k=settings.max_k,
        max_query_chars=settings.max_query_chars,
        administration=bool(settings.administrators),
    )


async def list_bundles(generations: BundleManager) -> BundlesResponse:
    """Look at the store and at the engines. Raises Refusal 422 when the store cannot be read."""
    try:
        stored = await generations.supervisor.read(partial(_stored, generations.store))
    except (DiptychError, OSError) as error:
        raise Refusal(422, "bad_store", generations.public(f"The store cannot be listed: {error}")) from error
    opened: list[tuple[State, Generation | None]] = [("serving", generations.current), ("kept", generations.kept)]
    opened.append(("compared", generations.comparison.generation))
    opened += [("draining", generation) for generation in generations.draining]
    return BundlesResponse(
        bundles=[one.model_copy(update={"trouble": one.trouble and generations.public(one.trouble)}) for one in stored],
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
        preparing=generations.preparing,
    )


def _stored(source: StoreAccess) -> list[StoredBundle]:
    names, store = source.names(), source.local_store
    try:
        active = source.active()
    except Unreachable:
        active = store.active()
    here = set(store.bundles())
    stored = [
        _described(store, name, name == active)
        if name in here
        else StoredBundle(name=name, active=name == active, trouble="not fetched yet; activating it does that")
        for name in names
    ]
    return sorted(stored, key=lambda one: one.created or "")  # behind a URL names come by the alphabet


def _described(store: Store, name: str, active: bool) -> StoredBundle:
    try:
        manifest = store.manifest(name)
    except BundleError as error:
        return StoredBundle(name=name, active=active, trouble=str(error))
    size = sum(entry.bytes for entry in manifest.files.values())
    return StoredBundle(name=name, active=active, created=manifest.created, labels=manifest.labels.count, bytes=size)
