"""Distinguish URLs from paths, and open the file system of a URL."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retrieval.errors import BadInput, Unreachable

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z0-9+.-]+)*):/+")


def as_url(place: Path | str) -> str | None:
    """Return `place` as a URL, with the slashes that a Path object removes; None for a path."""
    text = str(place)
    if not (match := SCHEME.match(text)):
        return None
    slashes = ":///" if match[1] == "file" else "://"
    return f"{match[1]}{slashes}{text[match.end() :]}"


def refuse_password(url: str) -> None:
    """Raise BadInput if a URL contains a password, which messages and records would show, or is not valid."""
    try:
        secret = urlsplit(url).password
    except ValueError as error:
        raise BadInput(f"{url} is not a URL ({error}).") from error
    if secret is not None:
        raise BadInput("The URL contains a password. Remove it, and pass it to the driver through the environment.")


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system for a URL, and the path in it. fsspec is imported only here."""
    schemes = re.findall(r"([A-Za-z0-9+.-]+)://", url)
    extra = next((EXTRAS[scheme] for scheme in schemes if scheme in EXTRAS), None)
    try:
        from fsspec import available_protocols
        from fsspec.core import url_to_fs

        if schemes[0] not in available_protocols():
            raise BadInput(f"{url}: fsspec has no driver for {schemes[0]}://. Use s3://, gs:// or az://.")
        files, root = url_to_fs(url)
    except ImportError as error:
        if error.name == "fsspec":
            extra = extra or "remote"
        fix = f" Install it with: pip install 'diptych[{extra}]'." if extra else ""
        raise BadInput(f"{url} needs a package that is not installed ({short_error(error)}).{fix}") from error
    except BadInput:
        raise
    except Exception as error:
        raise unreachable(url, error) from error
    return files, root.rstrip("/")


def unreachable(place: str, error: BaseException) -> Unreachable:
    """Return the error for a URL without a response."""
    return Unreachable(
        f"{place} cannot be reached ({short_error(error)}). Check the network, and the credentials in the environment."
    )


def short_error(error: BaseException) -> str:
    """Return the text of an error, on one line and shortened; drivers may include whole pages."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
