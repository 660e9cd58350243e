"""The cache folder, for fetched bundles and serial numbers: DIPTYCH_CACHE, or the user's cache folder."""

import os
from pathlib import Path

CACHE = "DIPTYCH_CACHE"


def cache_folder(named: Path | str | None = None) -> Path:
    """Return the folder `named`, or that of the environment, or the user's. It need not exist.

    Raises FileNotFoundError for a user without a home folder.
    """
    if chosen := named or os.environ.get(CACHE):
        return Path(chosen)
    if of_user := os.environ.get("XDG_CACHE_HOME"):
        return Path(of_user) / "diptych"
    try:
        return Path.home() / ".cache" / "diptych"
    except RuntimeError as error:
        raise FileNotFoundError(2, f"this user has no home folder; set {CACHE}") from error
