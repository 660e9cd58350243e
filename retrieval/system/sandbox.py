"""Restrict a process before it opens a bundle, in case a hostile file takes over its native code.

`confine` restricts files (Landlock), system calls (seccomp) and the network; `limit` restricts memory, time and core
dumps; `child_environment` removes credentials. docs/decisions/0034 has the measurements. This module imports nothing
slow and nothing that starts threads, since restrictions apply to the calling thread and the threads that it starts.
"""

import errno
import logging
import os
import re
import resource
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from retrieval.errors import BadInput

LOG = logging.getLogger("diptych")
SANDBOX = "DIPTYCH_SANDBOX"
Mode = Literal["auto", "required", "off"]

# Environment variables that a child process gets. All others, such as credentials, are removed.
VARIABLES = {
    "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV",
}  # fmt: skip
PREFIXES = (
    "LC_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "KMP_", "ORT_", "CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_",
    "TOKENIZERS_", "RAYON_", "RUST_", "ARROW_", "MALLOC_", "MIMALLOC_", "NPY_", "COVERAGE_",
)  # fmt: skip
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
NO_SECRET = "TOKENIZERS_"

BASE_BYTES = 2 << 30  # of data, for libraries and one batch
CORE_BYTES = 128 << 20  # per core, for the threads of three libraries
FILE_TIMES = 3  # copies of a file: as read, as parsed, as used
NOT_LOADED = "label_encoder.onnx"  # only hashed
OPEN_FILES = 1024

# System calls that loading and searching never make.
DENIED_CALLS = (
    "execve", "execveat", "fork", "vfork", "socket", "connect", "bind", "listen", "accept", "accept4", "ptrace",
    "process_vm_readv", "process_vm_writev", "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
    "pidfd_send_signal", "pidfd_getfd", "mount", "umount2", "pivot_root", "chroot", "setns", "unshare",
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "add_key", "request_key", "init_module",
    "finit_module", "delete_module", "open_by_handle_at", "name_to_handle_at", "setuid", "setgid", "setreuid",
)  # fmt: skip
FORK_CALLS = ("fork", "vfork")  # and `clone` without CLONE_THREAD
CLONE_THREAD = 0x1_0000  # the flag of `clone` that makes a thread instead of a process
X32 = 0x4000_0000  # the bit of system calls in the x32 numbering of x86-64

NO_LANDLOCK, NO_SECCOMP = "the kernel has no Landlock", "the kernel has no seccomp filters"
READABLE = (
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/sys",
    "/dev/urandom",
    "/dev/zero",
    # Not all of /proc: root could read the environment of other processes there.
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys",
    "/proc/filesystems",
    "/proc/version",
)


def sandbox_mode(written: str | None = None) -> Mode:
    """Return how children are confined: "auto" (if the system can), "required" or "off". Raises BadInput."""
    text = (os.environ.get(SANDBOX) if written is None else written) or "auto"
    for mode in get_args(Mode):
        if text == mode:
            return mode  # type: ignore[no-any-return]
    raise BadInput(f"{SANDBOX} is {text!r}; it must be auto, required or off.")


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a child process: the import path of its parent, and no credentials."""
    allowed = {
        name: value
        for name, value in environment.items()
        if (name in VARIABLES or name.startswith(PREFIXES)) and not SECRET.search(name.removeprefix(NO_SECRET))
    }
    return allowed | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def data_limit(folder: Path) -> int:
    """Return a limit in bytes for the memory of opening and searching the bundle in a folder."""
    return BASE_BYTES + CORE_BYTES * (os.cpu_count() or 1) + FILE_TIMES * folder_bytes(folder, without=NOT_LOADED)


def folder_bytes(folder: Path, without: str | None = None) -> int:
    """Return the total bytes of the files in a folder, except those whose name begins with `without`.

    0 if the folder does not exist. Raises OSError if it cannot be read.
    """
    try:
        with os.scandir(folder) as items:
            files = [item for item in items if without is None or not item.name.startswith(without)]
            return sum(item.stat(follow_symlinks=False).st_size for item in files)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def limit(data: int | None = None, cpu_seconds: int | None = None, file_bytes: int | None = None) -> None:
    """Limit this process: no core dumps, bytes of data, seconds of CPU time, and bytes of a written file."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if data is not None:
        _lower(resource.RLIMIT_DATA, data)
    if cpu_seconds is not None:
        _lower(resource.RLIMIT_CPU, cpu_seconds)
    if file_bytes is not None and not any(_is_file(descriptor) for descriptor in (1, 2)):  # where the log goes
        _lower(resource.RLIMIT_FSIZE, file_bytes)


def missing() -> list[str]:
    """Return what this system lacks to confine a process; empty if nothing."""
    return list(missing_by_package().values())


def missing_by_package(
    find: Callable[[str], object] = find_spec, load: Callable[[str], Any] = import_module
) -> dict[str, str]:
    """Return what this system lacks, by Python package; `find` and `load` find and import packages."""
    lacks = {}
    for package, reason in (("landlockpy", NO_LANDLOCK), ("seccompy", NO_SECCOMP)):
        if find(package) is None:
            lacks[package] = f"the package {package} is not installed"
        elif not _is_supported(load(package)):
            lacks[package] = reason
    return lacks


def _is_supported(package: Any) -> bool:
    try:
        return bool(package.supported())
    except OSError:  # a container may forbid the call that tests for support
        return False


def confine(
    readable: Iterable[Path], mode: Mode, lacks: Mapping[str, str] | None = None, *, may_fork: bool = False
) -> list[str]:
    """Permanently restrict this thread, and the threads that it starts, to what opening a bundle needs.

    Files under `readable` and those of Python can be read. Nothing can be written, and no program or connection can be
    started. Returns what this system lacks; raises BadInput instead if the mode is "required". `lacks` is the result of
    `missing_by_package`; default: call it. With `may_fork`, this process can fork; its children call `forbid_forks`.
    """
    if mode == "off":
        return []
    lacks = missing_by_package() if lacks is None else lacks
    reasons = list(lacks.values())
    if reasons and mode == "required":
        raise BadInput(f"{SANDBOX}=required: {', '.join(reasons)}. Install 'diptych[sandbox]' on Linux 5.13 or newer.")
    if "landlockpy" not in lacks:
        _restrict_files(readable)
    if "seccompy" not in lacks:
        _restrict_calls(tuple(call for call in DENIED_CALLS if not (may_fork and call in FORK_CALLS)), may_fork)
    return reasons


def forbid_forks(mode: Mode) -> None:
    """Deny this process, a child of one that was confined with `may_fork`, to fork."""
    if mode != "off" and "seccompy" not in missing_by_package():
        _restrict_calls(FORK_CALLS, may_fork=False)


def _restrict_files(readable: Iterable[Path]) -> None:
    import landlockpy

    access = landlockpy.AccessFS
    read = access.READ_FILE | access.READ_DIR
    with landlockpy.Ruleset(scoped=landlockpy.Scope.ABSTRACT_UNIX_SOCKET | landlockpy.Scope.SIGNAL) as rules:
        for path in {*map(Path, READABLE), *_python_folders(), *readable}:
            with suppress(FileNotFoundError):
                rules.allow_path(path, read if path.is_dir() else access.READ_FILE)
        rules.allow_path("/dev/null", access.READ_FILE | access.WRITE_FILE)
        rules.restrict()


def _python_folders() -> Iterable[Path]:
    """Yield the folders from which modules and shared libraries are loaded."""
    yield from {Path(path) for path in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if path}
    yield from {Path(path) for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path}


def _restrict_calls(denied: Iterable[str], may_fork: bool) -> None:
    import seccompy

    filter_ = seccompy.Filter(default=seccompy.Action.ALLOW)
    for name in denied:
        try:
            number = seccompy.syscall_nr(name)
        except (KeyError, ValueError, OSError):  # not on this processor architecture
            continue
        filter_.errno(number, errno.EPERM)
        if os.uname().machine == "x86_64":
            filter_.errno(number | X32, errno.EPERM)
    if not may_fork:
        filter_.errno("clone", errno.EPERM, args=[(0, seccompy.CmpOp.MASKED_EQ, 0, CLONE_THREAD)])
    filter_.errno("clone3", errno.ENOSYS)  # a filter cannot read its flags; the C library falls back to `clone`
    filter_.load()


def _lower(kind: int, most: int) -> None:
    """Set a limit unless a lower one is set."""
    soft, hard = resource.getrlimit(kind)
    bounded = min([most, *(one for one in (soft, hard) if one != resource.RLIM_INFINITY)])
    resource.setrlimit(kind, (bounded, bounded))


def _is_file(descriptor: int) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    return False
