"""Name the caller of a request: whose share of the service, and whose rate, it counts against."""

import ipaddress
from functools import lru_cache

Caller = bytes
ANYONE: Caller = b""  # requests without a caller share one place in the queue
ADMINISTRATOR: Caller = b"administrator"
NETWORK_BITS = 64  # of an IPv6 address: a customer is given a network of this size and all addresses in it
REMEMBERED = 4096  # addresses


def caller_of(key: bytes | None, address: str) -> Caller:
    """Return the digest of the caller's key, or its network where no key is needed."""
    return key or network_of(address)


@lru_cache(REMEMBERED)
def network_of(address: str) -> Caller:
    """Return an IPv4 address as it is and the /64 network of an IPv6 address."""
    if ":" not in address:
        return address.encode()
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ipaddress.AddressValueError:
        return address.encode()
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped).encode()
    return str(ipaddress.IPv6Network((parsed, NETWORK_BITS), strict=False)).encode()
