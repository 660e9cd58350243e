"""Refuse repeated headers: readers of the first and of the last value would see different requests."""

from collections.abc import Iterable

from service.errors import Refusal

SINGLE = {
    name.lower().encode(): name
    for name in (
        "Host", "X-Admin-Key", "X-Api-Key", "X-Deadline-Ms", "X-Request-ID", "Content-Type", "Content-Encoding",
        "Content-Length", "Origin", "Traceparent",
    )
}  # fmt: skip


def refusal(headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
    """Return the refusal of a request that repeats one of these headers, else None."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in SINGLE:
            message = f"The header {SINGLE[name]} was sent more than once; send it once."
            return Refusal(400, "repeated_header", message)
        seen.add(name)
    return None
