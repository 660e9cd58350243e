"""The machine, as much of it as this process may use: Python, processor, cores, memory, open files, disk."""

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from doctor.findings import Finding, gigabytes
from retrieval.system.limits import GROUPS, PROCESSES, available_cores, free_memory
from service.file_limits import DEFAULT_CONNECTIONS, OTHER_FILES

LITTLE_MEMORY = 1 << 30  # the default recipe trains the README's example in about this much
LITTLE_DISK = 2 << 30


def machine(groups: Path = GROUPS, processes: Path = PROCESSES, here: Path = Path()) -> Iterator[Finding]:
    """Every finding about the machine; `groups` and `processes` are where the kernel tells limits and hardware."""
    yield python()
    yield from processor(processes)
    yield cores(groups)
    yield memory(groups, processes)
    yield open_files()
    yield temporary()
    yield disk("disk", here)


def python() -> Finding:
    """Which Python runs; pip and the imports refuse those that are too old."""
    return Finding("Python", "ok", f"{platform.python_version()} ({platform.python_implementation()})")


def processor(processes: Path = PROCESSES) -> Iterator[Finding]:
    """What its vector units can do that encoding and searching profit from."""
    told = _processor(processes)
    name, flags = told.get("model name", platform.machine()), set(told.get("flags", told.get("features", "")).split())
    wide = next((one for one in ("avx512f", "avx2", "avx", "sve", "asimd") if one in flags), "")
    whole = f"{name}{f', {wide.upper()}' if wide else ''}"
    if platform.machine() == "x86_64" and wide in ("", "avx"):
        advice = (
            "Encoding and searching are slower without AVX2. Use a newer processor, or a virtual one that shows it."
        )
        yield Finding("processor", "note", f"{whole}, no AVX2", advice)
    else:
        yield Finding("processor", "ok", whole)
    products = sorted(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
    if products:
        yield Finding("int8 products", "ok", ", ".join(products).upper())
    else:
        advice = "A bundle of `--precision int8` gains less here and may answer differently: `bundles verify` tells."
        yield Finding("int8 products", "note", "none (no VNNI)", advice)


def cores(groups: Path = GROUPS) -> Finding:
    """Whole cores this process may use, by its affinity and the container's quota."""
    usable, there = available_cores(groups), os.cpu_count() or 1
    value = f"{usable} of {there}" if usable < there else f"{usable}"
    if usable > 1:
        return Finding("cores", "ok", value)
    return Finding("cores", "note", value, "The service's front and its engine share one core. Two serve steadier.")


def memory(groups: Path = GROUPS, processes: Path = PROCESSES) -> Finding:
    """What machine and container have left; whether a bundle fits is a finding about the store."""
    room = free_memory(groups, processes)
    value = f"{gigabytes(room.free)} free ({room.limit})"
    if room.free >= LITTLE_MEMORY:
        return Finding("memory", "ok", value)
    return Finding("memory", "note", value, "Training takes 1 GB and more. End other programs, or raise the limit.")


def open_files() -> Finding:
    """Whether as many connections can be open as the service allows."""
    hard, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1], os.environ.get("DIPTYCH_MAX_CONNECTIONS", "")
    needed = (int(allowed) if allowed.isdecimal() else DEFAULT_CONNECTIONS) + OTHER_FILES
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return Finding("open files", "ok", "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}")
    fits = max(1, hard - OTHER_FILES)
    advice = f"`diptych serve` needs {needed:,}: raise `ulimit -n`, or set DIPTYCH_MAX_CONNECTIONS={fits}."
    return Finding("open files", "problem", f"{hard:,} at most", advice)


def temporary() -> Finding:
    """Whether there is a folder for temporary files, and room in it."""
    try:
        return disk("temporary files", Path(tempfile.gettempdir()))
    except FileNotFoundError:
        return Finding("temporary files", "problem", "no writable folder", "Make /tmp writable, or set TMPDIR.")


def disk(topic: str, folder: Path) -> Finding:
    """Room on the disk of a folder."""
    folder = folder.resolve()
    free = shutil.disk_usage(folder).free
    value = f"{gigabytes(free)} free in {folder}"
    if free >= LITTLE_DISK:
        return Finding(topic, "ok", value)
    return Finding(topic, "note", value, "A checkpoint or a bundle of a million labels needs more. Make room.")


def _processor(processes: Path) -> dict[str, str]:
    """The first processor's lines in /proc/cpuinfo, keys in lower case."""
    try:
        block = (processes / "cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}
