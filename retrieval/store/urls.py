"""Tell URLs from paths. Kept apart from remote.py, so that a local store needs none of it."""

import re
from pathlib import Path

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z0-9+.-]+)*):/+")


def as_url(place: Path | str) -> str | None:
    """The URL that `place` is, also where a path object has taken some of its slashes away; None for a path."""
    text = str(place)
    if not (found := SCHEME.match(text)):
        return None
    slashes = ":///" if found[1] == "file" else "://"
    return f"{found[1]}{slashes}{text[found.end() :]}"
