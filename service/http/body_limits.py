"""Limit the structure of a JSON body before it is parsed.

Parsing and validation cost time and memory per value, not per byte: 1 MB of empty lists is 350,000 objects. Counting a
character takes about 0.4 ms per MB, so a body with too many values is refused at a fraction of the cost of parsing it.
Characters inside strings do not count.
"""

from typing import NamedTuple

from service.errors import Refusal

FIELD_QUOTES = 10  # quotes around the field names of a request without a filter
UNCHECKED_BYTES = 2048  # smaller bodies are not checked; they cannot be expensive


class JsonLimits(NamedTuple):
    """Limits of the JSON of a request."""

    members: int  # names in all objects together
    containers: int  # lists and objects
    values: int  # list entries and members
    escapes: int = 1 << 18  # backslashes, which make counting and parsing several times slower


DEFAULT_LIMITS = JsonLimits(members=64, containers=64, values=1024)


def check_structure(body: bytes, limits: JsonLimits) -> None:
    """Check a body against the limits of its request. Raises Refusal 422."""
    if len(body) <= UNCHECKED_BYTES:
        return
    escapes = body.count(b"\\")
    if escapes > limits.escapes:
        raise _refusal(limits.escapes, "escaped characters")
    # No backslash precedes the opening quote of a string, so this is an upper bound of the number of strings.
    if body.count(b'"') - (body.count(b'\\"') if escapes else 0) > 2 * (limits.values + limits.members):
        raise _refusal(limits.values, "values")
    if _excess(body, limits) and (excess := _excess(_outside_strings(body, escapes > 0), limits)):
        raise _refusal(*excess)


def least_texts(body: bytes) -> int:
    """Return a lower estimate of the texts in a request, from its quotes; 1 for a request with a filter."""
    if len(body) <= UNCHECKED_BYTES or b'"filter"' in body:
        return 1
    quotes = body.count(b'"') - (body.count(b'\\"') if b"\\" in body else 0)
    return max(1, (quotes - FIELD_QUOTES) // 2)


def _excess(body: bytes, limits: JsonLimits) -> tuple[int, str] | None:
    """Return the exceeded limit and its name; None when the body, read as structure only, is within all limits."""
    if body.count(b":") > limits.members:
        return limits.members, "names"
    if body.count(b"[") + body.count(b"{") > limits.containers:
        return limits.containers, "lists and objects"
    return (limits.values, "values") if body.count(b",") > limits.values else None


def _outside_strings(body: bytes, has_escapes: bool) -> bytes:
    """Return the body without the content of its strings."""
    if has_escapes:  # pairs first: in an odd run of backslashes, the last one escapes the next character
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(body.split(b'"')[::2])


def _refusal(limit: int, things: str) -> Refusal:
    return Refusal(422, "too_many_values", f"The body has more than {limit} {things}; send less in one request.")
