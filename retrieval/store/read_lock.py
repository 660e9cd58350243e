"""The folder of one bundle: protect it from `prune` while it is read, and read its date."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from retrieval.bundle.manifest import MANIFEST, MANIFEST_LIMIT
from retrieval.errors import BundleError
from retrieval.store.folder import share
from retrieval.system.safe_open import bundle_folder_open, open_file, read_small


def lease(folder: Path) -> IO[bytes]:
    """Return an open, locked manifest. `prune` keeps the bundle until it is closed or the process ends.

    Raises BundleError.
    """
    try:
        with bundle_folder_open(folder) as opened:
            handle = open(open_file(folder / MANIFEST, opened), "rb")  # noqa: SIM115  # the caller closes it
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be opened ({error.strerror}). Check its permissions.") from error
    try:
        share(handle.fileno())
    except OSError as error:
        handle.close()
        raise BundleError(
            f"{folder / MANIFEST} is locked by another process ({error.strerror}). End that process and try again."
        ) from error
    return handle


def created_at(folder: Path) -> datetime | None:
    """Return the date in a manifest of any format version; None if it has none."""
    try:
        with bundle_folder_open(folder) as opened:
            content = json.loads(read_small(folder / MANIFEST, MANIFEST_LIMIT, opened))
        created = datetime.fromisoformat(content["created"])
    except (BundleError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)
