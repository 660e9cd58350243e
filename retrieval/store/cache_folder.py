"""The cache folder, for fetched bundles and serial numbers: DIPTYCH_CACHE, or the user's cache folder."""

import os
from pathlib import Path

CACHE = "DIPTYCH_CACHE"


def cache_folder(folder: Path | str | None = None) -> Path:
    """Return `folder`, or the folder in the environment, or the user's cache folder. It need not exist.

    Raises FileNotFoundError for a user without a home folder.
    """
    if path := folder or os.environ.get(CACHE):
        return Path(path)
    if user_cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(user_cache) / "diptych"
    try:
        return Path.home() / ".cache" / "diptych"
    except RuntimeError as error:
        raise FileNotFoundError(2, f"this user has no home folder; set {CACHE}") from error
