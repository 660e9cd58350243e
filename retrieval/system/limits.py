"""Cores and memory that this process may use, from the machine and from its control groups (v2 or v1).

A container sees all cores and all memory of the machine; its control groups have its limits. The limit of a group
applies to all groups below it, so every group from this process's to the root is read.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GROUPS, PROCESSES = Path("/sys/fs/cgroup"), Path("/proc")
UNLIMITED = 1 << 60  # without a limit, v1 has the largest number of pages


class FreeMemory(NamedTuple):
    """Bytes that may still be used, and the limit that applies, as text."""

    free: int
    limit: str


def available_cores(groups: Path = GROUPS) -> int:
    """Return the whole cores that this process may use; more threads would be throttled in every period."""
    cores = len(os.sched_getaffinity(0))
    for folder in _folders(groups, "cpu"):
        quota = _words(folder / "cpu.max")
        quota = quota or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(quota) == 2 and quota[0] not in ("max", "-1"):
            cores = min(cores, int(quota[0]) // max(int(quota[1]), 1))
    return max(cores, 1)


def free_memory(groups: Path = GROUPS, processes: Path = PROCESSES) -> FreeMemory:
    """Return the smallest of what the machine and each group have free. Reclaimable page cache counts as free."""
    machine = {line[0]: int(line[1]) << 10 for line in _table(processes / "meminfo")}
    total = machine.get("MemTotal:", UNLIMITED)
    amounts = [FreeMemory(machine.get("MemAvailable:", total), f"the machine has {total >> 20:,} MB")]
    for folder in _folders(groups, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < UNLIMITED:
            free = max(limit - used + _reclaimable(folder), 0)
            amounts.append(FreeMemory(min(free, limit), f"the container's limit is {limit >> 20:,} MB"))
    return min(amounts)


def _reclaimable(folder: Path) -> int:
    """Return the bytes of cached files that no process has mapped, such as a file that was read to hash it."""
    stat = {line[0]: int(line[1]) for line in _table(folder / "memory.stat")}
    total = "total_" if "total_inactive_file" in stat else ""  # v1 counts the groups below in separate fields
    mapped = stat.get(f"{total}mapped_file", stat.get("file_mapped", 0))
    return max(stat.get(f"{total}inactive_file", 0) + stat.get(f"{total}active_file", 0) - mapped, 0)


def _folders(groups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, from the root down.

    In a container the path in /proc may be that of the host, which does not exist there; the root is then the
    container's group.
    """
    for _, controllers, path in (line.split(":", 2) for line in _lines(PROCESSES / "self/cgroup")):
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        for folder in (root, *(root.joinpath(*path.split("/")[1:end]) for end in range(2, path.count("/") + 2))):
            if folder.is_dir():
                yield folder


def _lines(path: Path) -> list[str]:
    """Return the lines of a system file; none if it does not exist or cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _table(path: Path) -> list[list[str]]:
    return [line.split() for line in _lines(path)]


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None
