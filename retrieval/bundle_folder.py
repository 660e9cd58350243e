"""The folder of one bundle: keeping it while it is read, and what it says of its age."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from retrieval.errors import BundleError
from retrieval.manifest import MANIFEST, MANIFEST_LIMIT
from retrieval.nofollow import bundle_folder_open, open_file, read_small
from retrieval.store_folder import share


def lease(folder: Path) -> IO[bytes]:
    """A handle on a bundle's manifest that keeps `prune` away until it is closed, or its process has ended."""
    try:
        with bundle_folder_open(folder) as opened:
            handle = open(open_file(folder / MANIFEST, opened), "rb")  # noqa: SIM115  # the caller closes it
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be opened ({error.strerror}). Check its rights.") from error
    try:
        share(handle.fileno())
    except OSError as error:
        handle.close()
        raise BundleError(
            f"{folder / MANIFEST} is locked by another process ({error.strerror}). End that process and try again."
        ) from error
    return handle


def created_at(folder: Path) -> datetime | None:
    """When a manifest says that its bundle was created; of any format version."""
    try:
        with bundle_folder_open(folder) as opened:
            content = json.loads(read_small(folder / MANIFEST, MANIFEST_LIMIT, opened))
        created = datetime.fromisoformat(content["created"])
    except (BundleError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)
