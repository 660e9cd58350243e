"""Lock files between processes with `flock`. The system releases a lock when its process ends.

Exclusive locks are taken on files that are open for writing, as NFS requires.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval.errors import BundleError
from retrieval.system.safe_open import open_file

SHARED_LOCK_SECONDS = 5.0
POLL_SECONDS = 0.02
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of file systems without locks


@contextmanager
def exclusive_lock(path: Path, folder: int | None = None, seconds: float | None = None) -> Iterator[None]:
    """Hold the exclusive lock of a file, which may be in an open folder. It is created if missing, and never written.

    Raises BundleError if another process holds the lock for `seconds`; default: wait without a limit.
    """
    descriptor = open_file(path, folder, os.O_RDWR | os.O_CREAT)
    try:
        if seconds is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _lock_within(seconds, descriptor, path)
        yield
    finally:
        os.close(descriptor)


def lock_shared(descriptor: int) -> None:
    """Take the shared lock of an open file. On a file system without locks this does nothing.

    `is_locked` holds the exclusive lock for a moment. Another process that may read the file could hold it for ever, so
    OSError is raised after SHARED_LOCK_SECONDS.
    """
    deadline = time.monotonic() + SHARED_LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in NO_LOCKS:
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def is_locked(path: Path, folder: int) -> bool:
    """Return whether a process holds a lock on a file of an open folder; False if the file does not exist."""
    try:
        descriptor = _open_for_lock(path, folder)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EBADF):  # EBADF: NFS, and no right to write the file
            return True
        raise
    finally:
        os.close(descriptor)
    return False


def _lock_within(seconds: float, descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BundleError(
                    f"{path} has been locked by another process for {seconds:g} s. Find it with `fuser {path}`, and "
                    "try again when it has ended."
                ) from error
        time.sleep(POLL_SECONDS)


def _open_for_lock(path: Path, folder: int) -> int:
    try:
        return open_file(path, folder, os.O_RDWR)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return open_file(path, folder)
        raise
