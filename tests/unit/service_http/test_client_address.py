"""The client's address behind proxies."""

from pathlib import Path

import pytest

from retrieval.errors import BadInput
from service.access.client_address import ClientAddresses
from service.request_context import RequestContext
from service.settings import Settings

TRUSTED = "10.0.0.0/8, 192.0.2.7, 2001:db8::/32"


def address(peer: str, *lines: str, trusted: str = TRUSTED) -> str:
    headers = [(b"host", b"test"), *((b"x-forwarded-for", line.encode("latin-1")) for line in lines)]
    return ClientAddresses(trusted).of(peer, headers)


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["6.6.6.6, 198.51.100.1, 192.0.2.7, 10.9.9.9"], "198.51.100.1"),
        ("10.1.2.3", ["6.6.6.6", "198.51.100.1", "10.9.9.9"], "198.51.100.1"),
        ("10.1.2.3", ["10.4.4.4, 10.5.5.5"], "10.4.4.4"),
        ("::ffff:10.1.2.3", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("2001:db8::1", ["[2a00::1]:443"], "2a00::1"),
        ("2001:DB8:0::1", ['"[2a00:0:0::1]"'], "2a00::1"),
        ("10.1.2.3", ["198.51.100.1:51234"], "198.51.100.1"),
        ("10.1.2.3", ["198.51.100.1, , ,"], "198.51.100.1"),
        ("fe80::1%eth0", ["198.51.100.1"], "fe80::1"),
    ],
)
def test_the_client_is_the_last_that_is_no_trusted_proxy(peer: str, lines: list[str], client: str) -> None:
    """All callers behind a proxy would share one limit, or a forged header would evade it."""
    assert address(peer, *lines) == client


@pytest.mark.parametrize(
    "entry",
    ["unknown", "_hidden", "300.1.1.1", "1.2.3", "[", "[]", ":::", "a" * 9000, "\xff\xfe", "10.0.0.0/8", "0x0a000001"],
)
def test_a_malformed_address_is_never_the_client(entry: str) -> None:
    """A malformed entry would end the request in a 500, or be used as an address."""
    assert address("10.1.2.3", f"6.6.6.6, {entry}, 10.5.5.5") == "10.5.5.5"
    assert address("10.1.2.3", f"6.6.6.6, {entry}") == "10.1.2.3"
    assert address("10.1.2.3", f"{entry}, 198.51.100.1") == "198.51.100.1"


def test_a_long_list_is_read_to_a_limit() -> None:
    """A head of 32 kB of addresses would cost milliseconds each time it is read."""
    assert address("10.1.2.3", "6.6.6.6, " + ", ".join(["10.5.5.5"] * 3000)) == "10.5.5.5"


def test_no_proxy_is_trusted_unless_configured() -> None:
    """Any client could choose the address that is limited and logged by writing the header."""
    assert address("127.0.0.1", "198.51.100.1", trusted="") == "127.0.0.1"
    assert address("not-an-address", "198.51.100.1") == "not-an-address"


def test_a_request_has_the_forwarded_address() -> None:
    """Limits, fair queueing and the audit log would use different addresses of one client."""
    scope = {
        "type": "http", "method": "GET", "path": "/livez", "client": ("10.0.0.1", 5),
        "headers": [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"198.51.100.1")],
    }  # fmt: skip
    addresses = ClientAddresses(TRUSTED).of
    assert RequestContext(scope, "/livez", addresses).address == "198.51.100.1"
    assert RequestContext({**scope, "client": None}, "/livez", addresses).address == "unknown"


@pytest.mark.parametrize("entry", ["proxy.example", "10.0.0.0/33", "10.0.0.5/8", "*", "10.0.0.1-9"])
def test_a_proxy_that_is_no_address_ends_the_start(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """A misspelt proxy would silently be ignored, and all its clients would count as one caller."""
    monkeypatch.setenv("DIPTYCH_TRUSTED_PROXIES", f"10.0.0.1, {entry}")
    with pytest.raises(BadInput, match=r"DIPTYCH_TRUSTED_PROXIES: '.+' is not an address or a network"):
        Settings.load(store=Path("s"))


def test_a_network_mapped_to_ipv6_is_one_of_ipv4() -> None:
    """A list written for a dual-stack listener would match no peer."""
    assert address("10.1.2.3", "198.51.100.1", trusted="::ffff:10.0.0.0/104") == "198.51.100.1"
