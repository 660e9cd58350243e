"""PAUSED.json of a store: ids of labels to leave out of all answers.

The list belongs to the store, so it survives restarts and applies to every bundle. Ids that a bundle does not have stay
in the list, since the next bundle may have them.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from retrieval.errors import BundleError, one_line
from retrieval.system.safe_open import read_small

PAUSED = "PAUSED.json"
LIMIT = 16 << 20  # bytes


class _List(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    paused: list[str]


def read_paused(store: Path, most: int | None = None) -> tuple[str, ...]:
    """Read the ids of a store's paused labels, without duplicates; empty if there is no list.

    Raises BundleError for an invalid list, and for one of more than `most` ids.
    """
    path = store / PAUSED
    try:
        return parse_paused(read_small(path, LIMIT), path, most)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error


def parse_paused(content: bytes | None, path: Path | str, most: int | None = None) -> tuple[str, ...]:
    """Parse the bytes of a list, named `path` in errors; None: there is no list. Raises BundleError."""
    if content is None:
        return ()
    try:
        ids = tuple(dict.fromkeys(_List.model_validate_json(content).paused))
    except ValidationError as error:
        raise BundleError(
            f"{path} is not a list of paused labels ({one_line(error.errors()[0]['msg'])}). "
            'Write it as {"paused": ["id", …]}, or remove it.'
        ) from error
    if most is not None and len(ids) > most:
        raise BundleError(f"{path} lists {len(ids):,} labels; the limit is {most:,}. Export a bundle without them.")
    return ids


def write_paused(ids: Iterable[str]) -> str:
    """Return the content of PAUSED.json for these ids."""
    return to_json({"paused": list(ids)}, indent=1).decode() + "\n"


def stamp_of(store: Path) -> tuple[int, ...] | None:
    """Return a stamp that differs after every change of a store's list; None without a list. Raises BundleError."""
    path = store / PAUSED
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
