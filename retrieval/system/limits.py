"""What this process may use: cores and memory, by the system and by the control groups (v2 or v1) around it.

A container sees the whole machine's cores and memory; what it may have of them stands in its groups. A group's limit
holds for all that are below it, so every group from ours to the root counts.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GROUPS, PROCESSES = Path("/sys/fs/cgroup"), Path("/proc")
BOUNDLESS = 1 << 60  # v1 says "no limit" with the greatest number of pages


class Room(NamedTuple):
    """Bytes that may still be used, and what sets that bound."""

    free: int
    bound: str


def available_cores(groups: Path = GROUPS) -> int:
    """Whole cores that this process may use: a thread more than that would be stopped for part of every period."""
    cores = len(os.sched_getaffinity(0))
    for folder in _folders(groups, "cpu"):
        quota = _words(folder / "cpu.max")
        quota = quota or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(quota) == 2 and quota[0] not in ("max", "-1"):
            cores = min(cores, int(quota[0]) // max(int(quota[1]), 1))
    return max(cores, 1)


def free_memory(groups: Path = GROUPS, processes: Path = PROCESSES) -> Room:
    """The least that the machine and the groups leave; what the system could give back at once counts as free."""
    machine = {line[0]: int(line[1]) << 10 for line in _table(processes / "meminfo")}
    total = machine.get("MemTotal:", BOUNDLESS)
    rooms = [Room(machine.get("MemAvailable:", total), f"the machine has {total >> 20:,} MB")]
    for folder in _folders(groups, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < BOUNDLESS:
            free = max(limit - used + _reclaimable(folder), 0)
            rooms.append(Room(min(free, limit), f"the container's limit is {limit >> 20:,} MB"))
    return min(rooms)


def _reclaimable(folder: Path) -> int:
    """Pages of files that nobody has mapped: read once, for instance to be hashed."""
    stat = {line[0]: int(line[1]) for line in _table(folder / "memory.stat")}
    total = "total_" if "total_inactive_file" in stat else ""  # v1 counts the groups below apart
    mapped = stat.get(f"{total}mapped_file", stat.get("file_mapped", 0))
    return max(stat.get(f"{total}inactive_file", 0) + stat.get(f"{total}active_file", 0) - mapped, 0)


def _folders(groups: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups around this process, from the root down.

    Inside a container the path in /proc may be that of the host, which is not there; then the root is the container's.
    """
    for _, controllers, path in (line.split(":", 2) for line in _lines(PROCESSES / "self/cgroup")):
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        for place in (root, *(root.joinpath(*path.split("/")[1:end]) for end in range(2, path.count("/") + 2))):
            if place.is_dir():
                yield place


def _lines(path: Path) -> list[str]:
    """A file of the system's; nothing where this system has no such file, or shows it to nobody."""
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
