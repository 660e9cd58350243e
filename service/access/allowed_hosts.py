"""Check the Host header against a list of allowed hosts, which prevents DNS rebinding."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from service.errors import Refusal

LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
NAME = re.compile(rf"(\*\.)?{LABEL}(?:\.{LABEL})*")
HOST = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")
PROBES = frozenset({"/livez", "/readyz"})  # Kubernetes sends them to the pod's address, which is not known in advance


class AllowedHosts:
    """Allowed hosts: names, wildcards such as *.example.com, addresses and networks."""

    def __init__(self, entries: list[str]) -> None:
        """Parse the entries. Raises ValueError for an invalid one."""
        self._names: set[str] = set()
        self._suffixes: list[str] = []
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in entries:
            self._add(entry)

    def __bool__(self) -> bool:
        return bool(self._names or self._suffixes or self._networks)

    def refusal(self, path: str, host: str | None) -> Refusal | None:
        """Return the refusal of a request with this Host header; None when it is allowed."""
        if not self or path in PROBES:
            return None
        match = HOST.fullmatch(host or "")
        if match is None:
            message = "The request needs one Host header with the name of the service."
            return Refusal(400, "bad_host", message)
        name = (match["literal"] or match["name"]).lower().removesuffix(".")
        if self._allows(name):
            return None
        message = "The name in the Host header is not allowed; add it to DIPTYCH_ALLOWED_HOSTS."
        return Refusal(421, "wrong_host", message)

    def _add(self, entry: str) -> None:
        if (network := _network(entry)) is not None:
            self._networks.append(network)
        elif not NAME.fullmatch(entry.removesuffix(".")):
            raise ValueError(
                f"{entry!r} is not a host; write shop.example, *.shop.example, 10.0.0.0/8 or ::1, without a port"
            )
        elif entry.startswith("*."):
            self._suffixes.append(entry[1:].lower().removesuffix("."))
        else:
            self._names.add(entry.lower().removesuffix("."))

    def _allows(self, name: str) -> bool:
        address = _address(name)
        if address is not None:
            return any(address in network for network in self._networks)
        return name in self._names or any(
            name.endswith(suffix) and len(name) > len(suffix) for suffix in self._suffixes
        )


def _network(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(entry.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None
