"""Parse keys from the environment and check their strength."""

import re
from itertools import pairwise

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SINGLE = "admin"  # the name of DIPTYCH_ADMIN_KEY
UNKNOWN = "unknown"  # name of an unknown key in the audit log
MIN_CHARS = 16
MIN_DISTINCT = 6
ADVICE = "`openssl rand -hex 24` makes a strong one"


def weakness(key: str) -> str | None:
    """Return why a key is weak, without showing it; None for a key without an obvious weakness."""
    if len(key) < MIN_CHARS:
        return f"it has {len(key)} characters and needs at least {MIN_CHARS}"
    if (distinct := len(set(key))) < MIN_DISTINCT:
        return f"it has only {distinct} different characters and needs at least {MIN_DISTINCT}"
    period = next(shift for shift in range(1, len(key) + 1) if key[shift:] == key[: len(key) - shift])
    if period <= len(key) // 2:
        return f"it repeats its first {period} characters"
    steps = sum(abs(ord(after) - ord(before)) <= 1 for before, after in pairwise(key))
    if steps > len(key) // 2:
        return "it is a sequence of neighbouring characters"
    return None


def checked_admin_key(key: str) -> str:
    """Strip and return an admin key. Raises ValueError for one that is weak or cannot be sent in a header."""
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise ValueError("the key has a character that a header cannot carry; use printable ASCII")
    if reason := weakness(key):
        raise ValueError(f"the key is too weak: {reason}; {ADVICE}")
    return key


def named_admin_keys(text: str) -> dict[str, str]:
    """Parse `name=key,name=key`. Raises ValueError for an invalid or repeated name and for a weak key."""
    keys: dict[str, str] = {}
    for place, entry in enumerate((entry for entry in text.split(",") if entry.strip()), 1):
        name, equals, key = entry.strip().partition("=")
        if not equals or not NAME.fullmatch(name) or name == UNKNOWN:
            raise ValueError(
                f"entry {place} is not name=key; a name has letters, digits, '.', '_' and '-', and is not {UNKNOWN}"
            )
        if name in keys:
            raise ValueError(f"the name {name} is used twice; give each key its own name")
        try:
            key = checked_admin_key(key)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if key in keys.values():
            raise ValueError(f"{name} has the same key as another name; give each name its own key")
        keys[name] = key
    return keys


def weak_predict_keys(keys: list[str]) -> list[str]:
    """Return a warning for each weak key of /predict, by its place in the list."""
    reasons = [(place, weakness(key)) for place, key in enumerate(keys, 1)]
    return [f"DIPTYCH_PREDICT_KEY: key {place} is weak: {reason}; {ADVICE}." for place, reason in reasons if reason]
