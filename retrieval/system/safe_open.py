"""Open files and folders of a store without following symbolic links, blocking on pipes or reading without limit.

A process that can write to a store may replace any file or folder in it at any time. Each one is therefore opened first
and checked through its descriptor. The path of the store itself may contain links.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieval.errors import BundleError

BUNDLES = "bundles"  # the folder of bundles in a store
OPEN_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_file(path: Path, folder: int | None = None, flags: int = os.O_RDONLY) -> int:
    """Open a regular file: `path`, or its last part in the open `folder`. Returns a descriptor.

    Raises BundleError if it is not a regular file, and OSError.
    """
    name = path if folder is None else path.name
    try:
        descriptor = os.open(name, flags | OPEN_FILE, 0o644, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno in (errno.ENXIO, errno.EISDIR) and not _is_regular(name, folder)):
            raise _refused(path, name, folder) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refused(path, name, folder)
    return descriptor


def open_folder(path: Path, parent: int | None = None, *, follow: bool = False, flags: int = OPEN_FOLDER) -> int:
    """Open a folder: `path`, or its last part in the open `parent`. A link is followed only with `follow`.

    Raises BundleError if it is a link, and OSError.
    """
    flags = flags & ~os.O_NOFOLLOW if follow else flags
    name = path if parent is None else path.name
    try:
        return os.open(name, flags, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(name, parent):
            raise BundleError(
                f"{path} is a symbolic link. A store has only regular files and folders: replace it by a folder."
            ) from error
        raise


def open_bundle_folder(path: Path) -> int:
    """Open the folder of a bundle. In a store (its parent is `bundles/`), neither of the two may be a link.

    Raises BundleError and OSError.
    """
    if path.parent.name != BUNDLES:
        return open_folder(path, follow=True)
    with folder_open(path.parent, flags=OPEN_FOLDER | os.O_PATH) as bundles:  # opened without listing it
        return open_folder(path, bundles)


@contextmanager
def folder_open(
    path: Path, parent: int | None = None, *, follow: bool = False, flags: int = OPEN_FOLDER
) -> Iterator[int]:
    """Open a folder as `open_folder` does; close it at the end."""
    descriptor = open_folder(path, parent, follow=follow, flags=flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def bundle_folder_open(path: Path) -> Iterator[int]:
    """Open a bundle's folder as `open_bundle_folder` does; close it at the end."""
    descriptor = open_bundle_folder(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_small(path: Path, limit: int, folder: int | None = None) -> bytes:
    """Read a whole file of at most `limit` bytes. Raises BundleError if it is longer or not regular, and OSError."""
    with open(open_file(path, folder), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) or b""
    if size > limit or len(content) > limit:
        raise BundleError(f"{path} has {max(size, len(content)):,} bytes; such a file has at most {limit:,}.")
    return content


def read_file(path: Path) -> bytes:
    """Read a whole file. Raises BundleError if it is not a regular file, and OSError."""
    with open(open_file(path), "rb") as file:
        return file.read()


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder and not a link to one."""
    with suppress(OSError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False


def remove(name: str, folder: int) -> None:
    """Remove a file, a link, or a folder with its content from an open folder. Links are not followed."""
    if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file to a new file. Raises BundleError if `source` is not a regular file, and OSError."""
    with open(open_file(source), "rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _is_link(name: Path | str, folder: int | None) -> bool:
    with suppress(OSError):
        return stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode)
    return False


def _is_regular(name: Path | str, folder: int | None) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(os.lstat(name, dir_fd=folder).st_mode)
    return False


def _refused(path: Path, name: Path | str, folder: int | None) -> BundleError:
    kind = "a symbolic link" if _is_link(name, folder) else "not a regular file"
    return BundleError(
        f"{path} is {kind}. A store has only regular files and folders: replace it by a copy of the file."
    )
