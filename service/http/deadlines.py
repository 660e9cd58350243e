"""Read the deadline that a client sets in a header."""

from typing import Any

from service.errors import Refusal

HEADER = "X-Deadline-Ms"
HEADER_BYTES = HEADER.lower().encode()
MAX_DIGITS = 9
PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "description": "The client's deadline in milliseconds. The service's own deadline is the maximum.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 10**MAX_DIGITS - 1},
    "example": 250,
}


def deadline_seconds(value: bytes | None) -> float | None:
    """Return the header's value in seconds; None without the header. Raises Refusal 422."""
    if value is None:
        return None
    if not (value.isdigit() and len(value) <= MAX_DIGITS and int(value)):
        message = f"The header {HEADER} must be a whole number of milliseconds from 1 to {10**MAX_DIGITS - 1}."
        raise Refusal(422, "bad_deadline", message)
    return int(value) / 1000
