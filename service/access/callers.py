"""Identify the caller of a request, whose share of the queue and rate limit it uses."""

import ipaddress
from functools import lru_cache

Caller = bytes
ANYONE: Caller = b""  # requests without a caller share one identity
ADMINISTRATOR: Caller = b"administrator"
NETWORK_BITS = 64  # prefix of an IPv6 address; one customer usually has all addresses of a /64
REMEMBERED = 4096  # addresses


def caller_of(key: bytes | None, address: str) -> Caller:
    """Return the digest of the caller's key, or its network when no key is needed."""
    return key or network_of(address)


@lru_cache(REMEMBERED)
def network_of(address: str) -> Caller:
    """Return an IPv4 address unchanged, and the /64 network of an IPv6 address."""
    if ":" not in address:
        return address.encode()
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ipaddress.AddressValueError:
        return address.encode()
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped).encode()
    return str(ipaddress.IPv6Network((parsed, NETWORK_BITS), strict=False)).encode()
