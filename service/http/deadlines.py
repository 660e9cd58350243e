"""How long a client is willing to wait, where it says so."""

from typing import Any

from service.errors import Refusal

HEADER = "X-Deadline-Ms"
HEADER_BYTES = HEADER.lower().encode()
DIGITS = 9
PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "description": "Milliseconds after which the answer is of no use any more; the service's own deadline is the most.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 10**DIGITS - 1},
    "example": 250,
}


def deadline_seconds(given: bytes | None) -> float | None:
    """The header's value in seconds, None without one. Raises Refusal 422."""
    if given is None:
        return None
    if not (given.isdigit() and len(given) <= DIGITS and int(given)):
        message = f"The header {HEADER} must be a whole number of milliseconds from 1 to {10**DIGITS - 1}."
        raise Refusal(422, "bad_deadline", message)
    return int(given) / 1000
