"""Write files atomically: a reader sees the previous file or the complete new one, also after a crash.

The content is written to a temporary file in the same folder, flushed to disk and renamed. Then the folder is flushed,
so the rename itself survives a power failure.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

_UMASK_LOCK = Lock()
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # errors of file systems that cannot flush a folder


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; what the block writes there replaces `path` when the block ends.

    If the block or the replacement fails, the temporary file is removed and `path` keeps its previous content. The
    file gets the permissions that a new file has under the process's umask. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(0o666 & ~_umask())  # some writers create files that only their owner may read
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
    os.fsync(target)


def sync(path: Path) -> None:
    """Flush a file's content to disk; raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where its file system can do that; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Return the process's umask; it can only be read by setting it."""
    with _UMASK_LOCK:  # two threads at once could leave the umask at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask
