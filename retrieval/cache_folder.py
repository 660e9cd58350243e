"""Where this user's machine keeps what was fetched or noted: DIPTYCH_CACHE, or the user's cache folder."""

import os
from pathlib import Path

CACHE = "DIPTYCH_CACHE"


def cache_folder(named: Path | str | None = None) -> Path:
    """The folder that is `named`, or the one of the environment, or the user's. It need not exist."""
    if chosen := named or os.environ.get(CACHE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"
