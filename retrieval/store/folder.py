"""Change a store's folder: one writer at a time, files replaced atomically, unfinished files in a staging folder.

All operations use descriptors of the folders, so no link inside the store is followed. Exclusive locks are taken on
files that are open for writing, as NFS requires.
"""

import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieval.errors import BundleError
from retrieval.system.safe_open import BUNDLES, folder_open, open_file, remove

STAGING = ".incoming"
LOCK = ".lock"
HELD = "held"  # in each folder under STAGING: a file that its writer keeps locked
CONTENT = "bundle"  # next to HELD: the bundle that is being written
SHARE_SECONDS = 5.0
CHANGE_SECONDS = 300.0  # for the store's lock; a rollback holds it while it compares a bundle with its manifest
POLL_SECONDS = 0.02
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of file systems without locks


@contextmanager
def changing(store: Path) -> Iterator[None]:
    """Turn OSError into BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{store} cannot be changed ({error.strerror or error}). Check its path, permissions and free space."
        ) from error


@contextmanager
def locked(store: Path) -> Iterator[int]:
    """Lock the store for writing, across processes, and yield a descriptor of its folder.

    The system releases the lock if the process dies. What dead processes left in STAGING is removed first. Raises
    BundleError, also if another process holds the lock for CHANGE_SECONDS.
    """
    with changing(store), folder_open(store, follow=True) as root, file_locked(store / LOCK, root, CHANGE_SECONDS):
        _sweep(store, root)
        yield root


@contextmanager
def file_locked(path: Path, folder: int, seconds: float | None = None) -> Iterator[None]:
    """Hold the exclusive lock of a file in an open folder. The file is created if missing, and never written.

    Raises BundleError if another process holds the lock for `seconds`; default: wait for ever.
    """
    handle = open_file(path, folder, os.O_RDWR | os.O_CREAT)
    try:
        if seconds is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            _lock_within(seconds, handle, path)
        yield
    finally:
        os.close(handle)


def _lock_within(seconds: float, handle: int, path: Path) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BundleError(
                    f"{path} has been locked by another process for {seconds:g} s. Find it with `fuser {path}`, and "
                    "try again when it has ended."
                ) from error
        time.sleep(POLL_SECONDS)


def replace(store: Path, root: int, target: int, name: str, content: bytes) -> None:
    """Replace a file of the open folder `target` atomically; it is written in STAGING, on the same file system."""
    with made_folder(store / STAGING, root) as staging:
        made = uuid.uuid4().hex
        handle = os.open(
            made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=staging
        )
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, name, src_dir_fd=staging, dst_dir_fd=target)
        os.fsync(target)


@contextmanager
def made_folder(path: Path, parent: int) -> Iterator[int]:
    """Open a subfolder of an open folder, created if missing; close it at the end."""
    with suppress(FileExistsError):
        os.mkdir(path.name, dir_fd=parent)
    with folder_open(path, parent) as opened:
        yield opened


def stage(store: Path, root: int) -> tuple[Path, int]:
    """Make an empty folder in STAGING; return it, and a descriptor whose lock protects it until it is closed."""
    with made_folder(store / STAGING, root) as staging:
        name = uuid.uuid4().hex
        os.mkdir(name, dir_fd=staging)
        folder = store / STAGING / name
        with folder_open(folder, staging) as opened:
            os.mkdir(CONTENT, dir_fd=opened)
            held = open_file(folder / HELD, opened, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError:
                os.close(held)
                raise
    return folder / CONTENT, held


def discard(store: Path, staged: Path, held: int) -> None:
    """Remove what `stage` made, unless it was moved away, and close its lock."""
    with (
        suppress(OSError, BundleError),
        folder_open(store, follow=True) as root,
        folder_open(store / STAGING, root) as staging,
    ):
        shutil.rmtree(staged.parent.name, ignore_errors=True, dir_fd=staging)
    os.close(held)


def in_use(path: Path, folder: int) -> bool:
    """Return whether a process holds a lock on a file of an open folder; False if the file does not exist."""
    try:
        handle = _open_for_lock(path, folder)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EBADF):  # EBADF: NFS, and no right to write the file
            return True
        raise
    finally:
        os.close(handle)
    return False


def share(handle: int) -> None:
    """Take a shared lock on an open file; on a file system without locks this does nothing.

    `in_use` holds the exclusive lock for a moment. Another process that may read the file could hold it for ever, so
    OSError is raised after SHARE_SECONDS.
    """
    deadline = time.monotonic() + SHARE_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in NO_LOCKS:
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def sync(descriptor: int) -> None:
    """Flush an open folder and the files in it to the disk."""
    for name in os.listdir(descriptor):
        handle = open_file(Path(name), descriptor)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    os.fsync(descriptor)


def _open_for_lock(path: Path, folder: int) -> int:
    try:
        return open_file(path, folder, os.O_RDWR)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return open_file(path, folder)
        raise


def _sweep(store: Path, root: int) -> None:
    """Remove what dead processes left in STAGING. Files there are written under the lock; folders have their own."""
    try:
        staging = folder_open(store / STAGING, root)
        with staging as opened:
            for name in os.listdir(opened):
                if not _is_held(store / STAGING / name, opened):
                    remove(name, opened)
    except FileNotFoundError:
        return


def _is_held(path: Path, staging: int) -> bool:
    try:
        with folder_open(path, staging) as opened:
            return in_use(path / HELD, opened)
    except (BundleError, FileNotFoundError, NotADirectoryError):  # not a folder that `stage` made
        return False
    except OSError:  # such as no permission, or no free descriptor: nothing shows that its owner has died
        return True


def bundle_names(store: Path) -> list[str]:
    """Return the names of the folders in a store's BUNDLES, unordered; links are ignored. Raises BundleError."""
    try:
        with (
            folder_open(store, follow=True) as root,
            folder_open(store / BUNDLES, root) as bundles,
            os.scandir(bundles) as items,
        ):
            return [item.name for item in items if item.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BundleError(f"{store / BUNDLES} cannot be read ({error.strerror}). Check its permissions.") from error
