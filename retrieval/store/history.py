"""The names of the active bundle and of the bundles that were active before, for rollback.

store/CURRENT   the active bundle's name
store/HISTORY   names in the order they were activated
"""

from collections.abc import Sequence
from pathlib import Path

from retrieval.bundle.manifest import NAME
from retrieval.errors import BundleError
from retrieval.system.safe_open import read_small

CURRENT, HISTORY = "CURRENT", "HISTORY"
CURRENT_LIMIT = 256  # bytes; a name has at most 64
HISTORY_LIMIT = 1 << 14
NAMES_IN_HISTORY = 50


def read_active(store: Path) -> str | None:
    """Return the name of a store's active bundle; None before the first activation. Raises BundleError."""
    text = _read_text(store / CURRENT, CURRENT_LIMIT)
    if text is None:
        return None
    name = text.strip()
    check_name(name)
    return name


def read_history(store: Path) -> list[str]:
    """Return the activated names up to the active one, without those that an interrupted activation added."""
    active = read_active(store)
    if active is None:
        return []
    names = (_read_text(store / HISTORY, HISTORY_LIMIT) or "").split()
    places = places_of(active, names)
    return names[: places[-1] + 1] if places else [active]


def previous_in(history: Sequence[str], active: str | None) -> str | None:
    """Return the last other name before the last occurrence of `active` in a history; None if there is none."""
    places = places_of(active, history)
    # `active` can precede itself if the bundle between its two activations was removed.
    return next((name for name in reversed(history[: places[-1]]) if name != active), None) if places else None


def places_of(name: str | None, names: Sequence[str]) -> list[int]:
    """Return the positions of a name."""
    return [place for place, other in enumerate(names) if other == name]


def check_name(name: str) -> None:
    """Raise BundleError unless `name` is a valid bundle name."""
    if not NAME.fullmatch(name):
        raise BundleError(
            f"{name!r} is not a bundle name: up to 64 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit."
        )


def _read_text(path: Path, limit: int) -> str | None:
    """Read a small file; None if it does not exist."""
    try:
        return read_small(path, limit).decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error}). Activate a bundle again.") from error
