"""Distinguish URLs from paths. This is a separate module, since a local store does not need remote.py."""

import re
from pathlib import Path

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z0-9+.-]+)*):/+")


def as_url(place: Path | str) -> str | None:
    """Return `place` as a URL, with the slashes that a Path object removes; None for a path."""
    text = str(place)
    if not (match := SCHEME.match(text)):
        return None
    slashes = ":///" if match[1] == "file" else "://"
    return f"{match[1]}{slashes}{text[match.end() :]}"
