"""Checks of the machine, within the limits of this process: Python, processor, cores, memory, open files, disk."""

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

LOW_MEMORY = 1 << 30  # the default recipe needs about this much for the README's example
LOW_DISK = 2 << 30


def check_machine(groups: Path = GROUPS, processes: Path = PROCESSES, folder: Path = Path()) -> Iterator[Finding]:
    """Check the machine; the kernel describes limits and hardware in `groups` and `processes`."""
    yield python()
    yield from processor(processes)
    yield cores(groups)
    yield memory(groups, processes)
    yield open_files()
    yield temporary()
    yield disk("disk", folder)


def python() -> Finding:
    """Report the version; pip refuses one that is too old."""
    return Finding("Python", "ok", f"{platform.python_version()} ({platform.python_implementation()})")


def processor(processes: Path = PROCESSES) -> Iterator[Finding]:
    """Report the vector instructions that encoding and searching use."""
    info = _cpuinfo(processes)
    name, flags = info.get("model name", platform.machine()), set(info.get("flags", info.get("features", "")).split())
    widest = next((name for name in ("avx512f", "avx2", "avx", "sve", "asimd") if name in flags), "")
    value = f"{name}{f', {widest.upper()}' if widest else ''}"
    if platform.machine() == "x86_64" and widest in ("", "avx"):
        advice = "Encoding and searching are slower without AVX2. Use a newer processor, or enable AVX2 for this VM."
        yield Finding("processor", "note", f"{value}, no AVX2", advice)
    else:
        yield Finding("processor", "ok", value)
    products = sorted(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
    if products:
        yield Finding("int8 products", "ok", ", ".join(products).upper())
    else:
        advice = "An int8 bundle gains less speed and may answer differently. Check it: `diptych bundles verify`."
        yield Finding("int8 products", "note", "none (no VNNI)", advice)


def cores(groups: Path = GROUPS) -> Finding:
    """Count the whole cores that affinity and the container's quota allow."""
    usable, total = available_cores(groups), os.cpu_count() or 1
    value = f"{usable} of {total}" if usable < total else f"{usable}"
    if usable > 1:
        return Finding("cores", "ok", value)
    return Finding("cores", "note", value, "HTTP process and engine share one core. With two, latency varies less.")


def memory(groups: Path = GROUPS, processes: Path = PROCESSES) -> Finding:
    """Report the free memory of machine and container; `check_store` checks whether a bundle fits."""
    room = free_memory(groups, processes)
    value = f"{gigabytes(room.free)} free ({room.limit})"
    if room.free >= LOW_MEMORY:
        return Finding("memory", "ok", value)
    return Finding("memory", "note", value, "Training needs 1 GB or more. Stop other programs, or raise the limit.")


def open_files() -> Finding:
    """Check that the process may open as many files as the service needs."""
    hard, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1], os.environ.get("DIPTYCH_MAX_CONNECTIONS", "")
    needed = (int(allowed) if allowed.isdecimal() else DEFAULT_CONNECTIONS) + OTHER_FILES
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return Finding("open files", "ok", "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}")
    possible = max(1, hard - OTHER_FILES)
    advice = f"`diptych serve` needs {needed:,}: raise `ulimit -n`, or set DIPTYCH_MAX_CONNECTIONS={possible}."
    return Finding("open files", "problem", f"{hard:,} at most", advice)


def temporary() -> Finding:
    """Check that there is a folder for temporary files, with free space."""
    try:
        return disk("temporary files", Path(tempfile.gettempdir()))
    except FileNotFoundError:
        return Finding("temporary files", "problem", "no writable folder", "Make /tmp writable, or set TMPDIR.")


def disk(topic: str, folder: Path) -> Finding:
    """Report the free space on the disk of a folder."""
    folder = folder.resolve()
    free = shutil.disk_usage(folder).free
    value = f"{gigabytes(free)} free in {folder}"
    if free >= LOW_DISK:
        return Finding(topic, "ok", value)
    return Finding(topic, "note", value, "A checkpoint or a bundle of a million labels needs more. Free some space.")


def _cpuinfo(processes: Path) -> dict[str, str]:
    """Parse the first processor's entry of /proc/cpuinfo; keys in lower case."""
    try:
        block = (processes / "cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}
