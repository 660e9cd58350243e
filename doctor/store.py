"""A store: whether it can be read and written, and whether its active bundle is whole, trusted and not too large."""

import os
from collections.abc import Iterator
from pathlib import Path

from doctor.findings import Finding, gigabytes
from doctor.machine import disk
from retrieval.bundle.manifest import read_manifest
from retrieval.bundle.signatures import SIGNATURE, TRUSTED_KEYS, trusted_keys
from retrieval.errors import DiptychError
from retrieval.sandboxed_opening import verify_in_subprocess
from retrieval.system.limits import GROUPS, free_memory
from service.bundles.memory_check import needed_memory
from service.bundles.store_access import StoreAccess


def store(place: str, groups: Path = GROUPS) -> Iterator[Finding]:
    """Every finding about the store at `place`, a folder or a URL; behind a URL, the active bundle is fetched."""
    try:
        trusted = trusted_keys()
        source = StoreAccess(Path(place), trusted)
        if source.url is None and not source.local_store.path.is_dir():
            yield Finding(
                "store", "problem", f"{place} is no folder", "Name the folder that `diptych export` wrote to."
            )
            return
        yield _whole(source)
        folder = source.fetch(None)
    except DiptychError as error:
        yield _refused("active bundle", error)
        return
    except OSError as error:
        why = f"{error.filename or place}: {error.strerror or error}"
        yield Finding("store", "problem", why, "Give this user the right to read it.")
        return
    yield from bundle(folder, trusted, groups)


def bundle(folder: Path, trusted: tuple[str, ...], groups: Path = GROUPS) -> Iterator[Finding]:
    """Whether a bundle opens, gives its golden answers, is signed, and fits into memory."""
    try:
        needed, room = needed_memory(read_manifest(folder, trusted), trusted), free_memory(groups)
        value = f"about {gigabytes(needed)} needed, {gigabytes(room.free)} free ({room.limit})"
        if needed > room.free:  # opened all the same, the kernel might end an engine that serves it here
            advice = "It was not opened. Give the service more memory, or serve a smaller bundle."
            yield Finding("memory for it", "problem", value, advice)
            return
        report = verify_in_subprocess(folder, trusted)
    except DiptychError as error:
        yield _refused("active bundle", error)
        return
    yield Finding("active bundle", "ok", f"{folder.name}: {report}")
    yield _signature(folder, trusted)
    if 2 * needed > room.free:
        advice = "While bundles are switched, two are in memory: a switch to another of this size would be refused."
        yield Finding("memory for it", "note", value, advice)
    else:
        yield Finding("memory for it", "ok", value)


def _whole(source: StoreAccess) -> Finding:
    names = source.names()
    value = f"{source.place}, {len(names)} bundle{'s' * (len(names) != 1)}"
    if source.url is not None:
        return Finding("store", "ok", value)
    if not os.access(source.local_store.path, os.W_OK):
        advice = "Serving works; exporting and activating need the right to write it."
        return Finding("store", "note", f"{value}, cannot be written", advice)
    room = disk("store", source.local_store.path)
    return room._replace(value=f"{value}, {room.value}")


def _signature(folder: Path, trusted: tuple[str, ...]) -> Finding:
    if trusted:  # otherwise it would have been refused
        return Finding("signature", "ok", f"made by one of the {len(trusted)} trusted keys")
    if not (folder / SIGNATURE).is_file():
        return Finding("signature", "ok", f"none, and none is asked for ({TRUSTED_KEYS} is not set)")
    return Finding("signature", "note", "there, and not looked at", f"Set {TRUSTED_KEYS} to the keys you trust.")


def _refused(topic: str, error: DiptychError) -> Finding:
    """Errors end in the way out, a sentence of its own."""
    why, stop, way = str(error).rpartition(". ")
    return Finding(topic, "problem", why if stop else way, way if stop else "")
