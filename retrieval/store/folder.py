"""Change a store's folder: one writer at a time, files replaced atomically, unfinished files in a staging folder.

All operations use descriptors of the folders, so no link inside the store is followed.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from retrieval.bundle.manifest import MANIFEST, MANIFEST_LIMIT
from retrieval.errors import BundleError
from retrieval.system.atomic_files import replace_in_folder
from retrieval.system.file_locks import exclusive_lock, is_locked
from retrieval.system.safe_open import BUNDLES, bundle_folder_open, folder_open, open_file, read_small, remove

STAGING = ".incoming"
LOCK = ".lock"
STAGING_LOCK = "held"  # in each folder under STAGING: a file that its writer keeps locked
STAGED_BUNDLE = "bundle"  # next to STAGING_LOCK: the bundle that is being written
STORE_LOCK_SECONDS = 300.0  # a rollback holds the store's lock while it compares a bundle with its manifest


@contextmanager
def write_errors(store: Path) -> Iterator[None]:
    """Turn OSError into BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{store} cannot be changed ({error.strerror or error}). Check its path, permissions and free space."
        ) from error


@contextmanager
def store_lock(store: Path) -> Iterator[int]:
    """Lock the store for writing, across processes, and yield a descriptor of its folder.

    The system releases the lock if the process dies. What dead processes left in STAGING is removed first. Raises
    BundleError, also if another process holds the lock for STORE_LOCK_SECONDS.
    """
    with (
        write_errors(store),
        folder_open(store, follow=True) as root,
        exclusive_lock(store / LOCK, root, STORE_LOCK_SECONDS),
    ):
        _clean_staging(store, root)
        yield root


def replace_file(store: Path, root: int, target: int, name: str, content: bytes) -> None:
    """Replace a file of the open folder `target` atomically; it is written in STAGING, on the same file system."""
    with subfolder(store / STAGING, root) as staging:
        replace_in_folder(staging, target, name, content)


@contextmanager
def subfolder(path: Path, parent: int) -> Iterator[int]:
    """Open a subfolder of an open folder, created if missing; close it at the end."""
    with suppress(FileExistsError):
        os.mkdir(path.name, dir_fd=parent)
    with folder_open(path, parent) as descriptor:
        yield descriptor


def stage(store: Path, root: int) -> tuple[Path, int]:
    """Make an empty folder in STAGING; return it, and a descriptor whose lock protects it until it is closed."""
    with subfolder(store / STAGING, root) as staging:
        name = uuid.uuid4().hex
        os.mkdir(name, dir_fd=staging)
        folder = store / STAGING / name
        with folder_open(folder, staging) as descriptor:
            os.mkdir(STAGED_BUNDLE, dir_fd=descriptor)
            lock = open_file(folder / STAGING_LOCK, descriptor, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                os.close(lock)
                raise
    return folder / STAGED_BUNDLE, lock


def unstage(store: Path, staged: Path, lock: int) -> None:
    """Remove the folder that `stage` made, unless it was moved away, and close its lock."""
    with (
        suppress(OSError, BundleError),
        folder_open(store, follow=True) as root,
        folder_open(store / STAGING, root) as staging,
    ):
        shutil.rmtree(staged.parent.name, ignore_errors=True, dir_fd=staging)
    os.close(lock)


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


def created_at(folder: Path) -> datetime | None:
    """Return the date in a bundle's manifest of any format version; None if it has none."""
    try:
        with bundle_folder_open(folder) as descriptor:
            content = json.loads(read_small(folder / MANIFEST, MANIFEST_LIMIT, descriptor))
        created = datetime.fromisoformat(content["created"])
    except (BundleError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def _clean_staging(store: Path, root: int) -> None:
    """Remove what dead processes left in STAGING.

    Files there are written under the store's lock, and each folder has a lock of its own.
    """
    try:
        with folder_open(store / STAGING, root) as staging:
            for name in os.listdir(staging):
                if not _has_writer(store / STAGING / name, staging):
                    remove(name, staging)
    except FileNotFoundError:
        return


def _has_writer(path: Path, staging: int) -> bool:
    try:
        with folder_open(path, staging) as descriptor:
            return is_locked(path / STAGING_LOCK, descriptor)
    except (BundleError, FileNotFoundError, NotADirectoryError):  # not a folder that `stage` made
        return False
    except OSError:  # such as no permission, or no free descriptor: nothing shows that its writer has died
        return True
