"""Cores and memory of control groups, read from folders like those of the kernel."""

import os
from pathlib import Path

import pytest

from retrieval.system.limits import available_cores, free_memory

MB = 1 << 20


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("190000 100000", 1)])
def test_a_share_of_the_processor_bounds_the_threads(tmp_path: Path, quota: str, cores: int) -> None:
    """If it fails, a container with one core on a large machine runs dozens of threads and is throttled."""
    assert available_cores(written(tmp_path / "v2", cpu__max=quota + "\n")) == cores
    allowed, period = quota.split()
    written(tmp_path / "v1" / "cpu", cpu__cfs_quota_us=allowed, cpu__cfs_period_us=period)
    assert available_cores(tmp_path / "v1") == cores


@pytest.mark.parametrize("quota", ["max 100000", "100000000 100000", "", "max"])
def test_without_a_bound_all_cores_are_used(tmp_path: Path, quota: str) -> None:
    """If it fails, a machine without control groups uses one core only."""
    cores = len(os.sched_getaffinity(0))
    assert available_cores(written(tmp_path / "v2", cpu__max=quota)) == cores
    written(tmp_path / "v1" / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert available_cores(tmp_path / "v1") == available_cores(tmp_path / "absent") == cores


def test_memory_that_is_left_of_the_containers_limit(tmp_path: Path) -> None:
    """If it fails, a second bundle is loaded although memory is short, and the kernel ends the service."""
    stat = f"inactive_file {30 * MB}\nactive_file {20 * MB}\nfile_mapped {10 * MB}\n"
    v2 = written(tmp_path / "v2", memory__max=str(100 * MB), memory__current=str(80 * MB), memory__stat=stat)
    assert free_memory(v2) == (60 * MB, "the container's limit is 100 MB")
    stat = f"inactive_file 0\ntotal_inactive_file {30 * MB}\ntotal_active_file {5 * MB}\ntotal_mapped_file 0\n"
    limits = {"memory__limit_in_bytes": str(90 * MB), "memory__usage_in_bytes": str(80 * MB), "memory__stat": stat}
    written(tmp_path / "v1" / "memory", **limits)
    assert free_memory(tmp_path / "v1") == (45 * MB, "the container's limit is 90 MB")


def test_memory_that_is_left_of_the_machines(tmp_path: Path) -> None:
    """If it fails, free memory is unknown on a machine without limits."""
    processes = written(tmp_path / "proc", meminfo=f"MemTotal: {800 << 10} kB\nMemAvailable: {300 << 10} kB\n")
    boundless = written(tmp_path / "v2", memory__max="max", memory__current=str(80 * MB))
    assert free_memory(boundless, processes) == (300 * MB, "the machine has 800 MB")
    written(tmp_path / "v1" / "memory", memory__limit_in_bytes=str((1 << 63) - 4096), memory__usage_in_bytes="5")
    assert free_memory(tmp_path / "v1", processes) == free_memory(tmp_path / "absent", processes)
