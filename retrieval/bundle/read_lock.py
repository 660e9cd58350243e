"""Lock a bundle for reading, so that `bundles prune` keeps it while it is open."""

from pathlib import Path
from typing import IO

from retrieval.bundle.manifest import MANIFEST
from retrieval.errors import BundleError
from retrieval.system.file_locks import lock_shared
from retrieval.system.safe_open import bundle_folder_open, open_file


def read_lock(folder: Path) -> IO[bytes]:
    """Return an open manifest with a shared lock, which lasts until it is closed or the process ends.

    Raises BundleError.
    """
    try:
        with bundle_folder_open(folder) as descriptor:
            file = open(open_file(folder / MANIFEST, descriptor), "rb")  # noqa: SIM115  # the caller closes it
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be opened ({error.strerror}). Check its permissions.") from error
    try:
        lock_shared(file.fileno())
    except OSError as error:
        file.close()
        raise BundleError(
            f"{folder / MANIFEST} is locked by another process ({error.strerror}). End that process and try again."
        ) from error
    return file
