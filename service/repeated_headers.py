"""Headers that must not be sent twice: what reads the first and what reads the last would see two requests."""

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
    """Return the answer to a request that sends one of these headers more than once, else None."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in SINGLE:
            message = f"The header {SINGLE[name]} is there more than once; send it once."
            return Refusal(400, "repeated_header", message)
        seen.add(name)
    return None
