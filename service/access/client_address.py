"""Determine the address of a client: the peer's, or the one that a trusted proxy reports in X-Forwarded-For."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from service.request_context import UNKNOWN_ADDRESS

FORWARDED = b"x-forwarded-for"
MAX_HOPS = 32  # entries that are read, from the right
LONGEST = 64  # bytes of an entry with brackets and a port

Address = IPv4Address | IPv6Address
Headers = Iterable[tuple[bytes, bytes]]


def proxy_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Parse a comma-separated list of addresses and networks. Raises ValueError that names the invalid entry."""
    networks = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            continue
        try:
            networks.append(_plain_network(ip_network(entry)))
        except ValueError as error:
            raise ValueError(
                f"{entry!r} is not an address or a network ({error}); write 10.0.0.5, 10.0.0.0/8 or 2001:db8::/32"
            ) from error
    return tuple(networks)


class ClientAddresses:
    """Determine the address that limits, fairness and the audit log use."""

    def __init__(self, trusted: str) -> None:
        """Set up with a comma-separated list of trusted proxies. Raises ValueError."""
        self._trusted = proxy_networks(trusted)
        self._is_trusted = lru_cache(maxsize=1024)(self._in_a_network)

    def of(self, peer: str, headers: Headers) -> str:
        """Return the right-most forwarded address that is not a trusted proxy, if the peer is one; else the peer's.

        An invalid entry ends the search, because the proxy that wrote it is unknown. Then, and when every entry is a
        trusted proxy, the last trusted address is returned.
        """
        if not self._trusted:
            return normal_address(peer)
        address = parse_address(peer)
        if address is None or not self._is_trusted(address):
            return normal_address(peer)
        for entry in _from_the_right(headers):
            hop = parse_address(entry)
            if hop is None:
                break
            address = hop
            if not self._is_trusted(hop):
                break
        return str(address)

    def _in_a_network(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """Parse an address without port, brackets, quotes and zone; unmap IPv4-mapped IPv6. None for other text."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=4096)
def normal_address(peer: str) -> str:
    """Return the one way to write an address; other text as it is."""
    address = parse_address(peer)
    return str(address) if address else peer or UNKNOWN_ADDRESS


def _from_the_right(headers: Headers) -> Iterable[str]:
    """Yield the entries of all X-Forwarded-For headers, the last first, without empty ones."""
    hops = 0
    for line in reversed([value for name, value in headers if name == FORWARDED]):
        rest = line
        while rest and hops < MAX_HOPS:
            rest, _, entry = rest.rpartition(b",")
            if entry := entry.strip():
                hops += 1
                yield entry[: LONGEST + 1].decode("latin-1")


def _plain_network(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return the IPv4 network of an IPv4-mapped IPv6 network, other networks unchanged."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return ip_network((mapped, network.prefixlen - 96)) if mapped and network.prefixlen >= 96 else network
