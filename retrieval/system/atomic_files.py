"""Write files and folders atomically: a reader sees the previous content or the complete new one, also after a crash.

The content is written under a temporary name, flushed to disk and renamed. Then the folder that contains it is flushed,
so the rename itself survives a power failure. No other module flushes files; a rename elsewhere need not be durable.
"""

import errno
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval.system.safe_open import open_file

PARTIAL = ".partial"  # suffix of temporary files
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # errors of file systems that cannot flush a folder


@contextmanager
def atomic_file(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary path; what the block writes there replaces `path` when the block ends.

    unique: several processes may write the file at the same time; what a killed process has written is not removed.

    If the block or the replacement fails, the temporary file is removed and `path` keeps its previous content. The
    file gets the permissions that a new file has under the process's umask. Raises OSError.
    """
    name = f"{path.name}.{uuid.uuid4().hex}" if unique else path.name
    temporary = path.with_name(f".{name}{PARTIAL}")
    temporary.unlink(missing_ok=True)  # a process that was killed may have left it
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(_new_file_permissions(path))  # some writers create files that only their owner may read
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # on a full disk, its space is needed


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by `content` atomically; raises OSError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` in UTF-8 atomically; raises OSError."""
    write_bytes(path, text.encode("utf-8"))


def replace_in_folder(staging: int, target: int, name: str, content: bytes) -> None:
    """Replace a file of the open folder `target` atomically; raises OSError.

    The temporary file is written in the open folder `staging` of the same file system. No symbolic link is followed,
    also if another process exchanges folders meanwhile.
    """
    temporary = uuid.uuid4().hex
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o644, dir_fd=staging), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, name, src_dir_fd=staging, dst_dir_fd=target)
    sync_entries(target)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Rename the folder `temporary`, which contains only files, to `folder`; remove the previous `folder`.

    Both must be in the same parent folder. If a rename fails, `folder` keeps its previous content. Raises OSError.
    """
    with _folder(temporary) as descriptor:
        sync_files(descriptor)
    if not folder.exists():
        os.rename(temporary, folder)
        sync_folder(folder.parent)
        return
    previous = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".replaced", dir=folder.parent))
    os.rename(folder, previous)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(previous, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(previous)


def move_folder(source: Path, target: int, name: str) -> None:
    """Rename a folder to `name` in the open folder `target`; flush its files with `sync_files` first. Raises OSError.

    The previous parent of `source` is not flushed.
    """
    os.rename(source, name, dst_dir_fd=target)
    sync_entries(target)


def sync(path: Path) -> None:
    """Flush a file's content to disk; raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_files(folder: int) -> None:
    """Flush an open folder and its files to disk. Raises OSError, and BundleError if one is not a regular file."""
    for name in os.listdir(folder):
        descriptor = open_file(Path(name), folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_entries(folder)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, if its file system can do that; raises OSError."""
    with _folder(path) as descriptor:
        sync_entries(descriptor)


def sync_entries(folder: int) -> None:
    """Flush an open folder's entries to disk, if its file system can do that; raises OSError."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _new_file_permissions(path: Path) -> int:
    """Return the permissions that a new file next to `path` has, by creating one.

    They depend on the umask, but reading that would change it for a moment, also for files of other threads.
    """
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with probe.open("xb") as file:
            return stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        probe.unlink(missing_ok=True)
