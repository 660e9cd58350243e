"""Changing a store's folder: one writer at a time, files replaced whole, and what is being written kept apart.

Everything goes through descriptors of the folders, so that no link that somebody puts into the store is followed.
Locks are taken on files that are open for writing, since NFS gives exclusive locks on no others.
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
from retrieval.nofollow import BUNDLES, folder_open, open_file, remove

STAGING = ".incoming"
LOCK = ".lock"
HELD = "held"  # in a folder of its own under STAGING: the file whose lock says that somebody writes there
CONTENT = "bundle"  # beside it: what is being written
SHARE_SECONDS = 5.0
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without locks say


@contextmanager
def changing(store: Path) -> Iterator[None]:
    """Turn the system's errors into BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{store} cannot be changed ({error.strerror or error}). Check its path, rights and free space."
        ) from error


@contextmanager
def locked(store: Path) -> Iterator[int]:
    """Be the only writer, across processes, and hold the store's folder open. The system frees it if the holder dies.

    What commands that died left in STAGING is removed first. Raises BundleError.
    """
    with changing(store), folder_open(store, follow=True) as root, file_locked(store / LOCK, root):
        _sweep(store, root)
        yield root


@contextmanager
def file_locked(path: Path, folder: int) -> Iterator[None]:
    """Hold the lock of a file in an open folder; it is made where it is missing, and its content is left alone."""
    handle = open_file(path, folder, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def replace(store: Path, root: int, target: int, name: str, content: bytes) -> None:
    """Write a file of the open folder `target` whole or not at all; it is made in STAGING, on the same file system."""
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
    """Hold a folder of an open one, which is made where it is missing."""
    with suppress(FileExistsError):
        os.mkdir(path.name, dir_fd=parent)
    with folder_open(path, parent) as opened:
        yield opened


def stage(store: Path, root: int) -> tuple[Path, int]:
    """Make an empty folder in STAGING; returns it, and the handle that keeps it from being swept away until closed."""
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
    """Remove what `stage` made, as far as it is still there."""
    with (
        suppress(OSError, BundleError),
        folder_open(store, follow=True) as root,
        folder_open(store / STAGING, root) as staging,
    ):
        shutil.rmtree(staged.parent.name, ignore_errors=True, dir_fd=staging)
    os.close(held)


def in_use(path: Path, folder: int) -> bool:
    """Whether a living process holds a lock on a file of an open folder; one that is not there is not held."""
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
    """Bring an open folder and the files in it to the disk."""
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
    """Remove what commands that died left in STAGING: files are written there under the lock, folders are held."""
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
    """Names of the folders in a store's BUNDLES, in no order; links are none. Raises BundleError."""
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
        raise BundleError(f"{store / BUNDLES} cannot be read ({error.strerror}). Check its rights.") from error
