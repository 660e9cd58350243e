"""Host headers that are allowed and refused with a list of names."""

import pytest

from service.access.allowed_hosts import AllowedHosts

LIST = ["shop.example", "*.internal.example", "localhost", "10.0.0.0/8", "::1", "[2001:db8::7]", "192.0.2.1"]


def status(host: str | None, path: str = "/predict") -> int:
    refusal = AllowedHosts(LIST).refusal(path, host)
    return refusal.status if refusal else 200


@pytest.mark.parametrize(
    "host",
    [
        "shop.example", "SHOP.example", "shop.example.", "shop.example:8000", "shop.example:", "a.internal.example",
        "a.b.internal.example:443", "localhost:8000", "10.2.3.4", "10.2.3.4:8000", "[::1]", "[::1]:8000",
        "[0:0:0:0:0:0:0:1]:8000", "[2001:DB8::7]", "192.0.2.1",
    ],
)  # fmt: skip
def test_listed_names_are_allowed(host: str) -> None:
    """Clients that write the name in another case, with a port or with a dot at the end would be refused."""
    assert status(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "shop.example.evil.example", "evilshop.example", "internal.example", ".internal.example",
        "evilinternal.example", "192.0.2.2", "11.0.0.1", "[::2]", "0x0a000001", "167772161", "localhost.evil.example",
        "shop.example@evil.example", "shop.example evil.example", "*.internal.example/",
    ],
)  # fmt: skip
def test_all_other_names_are_refused(host: str) -> None:
    """A page of another site, whose name leads to this machine, could ask the service from inside a browser."""
    assert status(host) == 421


@pytest.mark.parametrize(
    "host", [None, "", ":8000", "::1", "shop.example:80:80", "shop.example:http", "[shop.example]", "[::1", "[::1]x"]
)
def test_no_host_or_a_malformed_one_is_refused(host: str | None) -> None:
    """A request without a Host header would pass the list of names."""
    assert status(host) == 400


def test_probes_need_no_listed_name() -> None:
    """Kubernetes, which asks by the pod's address, would restart every pod; or /metrics would be exempt too."""
    assert status("172.16.0.9:8000", "/livez") == status(None, "/readyz") == 200
    assert status("172.16.0.9:8000", "/metrics") == 421


def test_without_a_list_every_name_is_answered() -> None:
    """The service would refuse every request by default."""
    assert AllowedHosts([]).refusal("/predict", None) is None
    assert not AllowedHosts([])


@pytest.mark.parametrize(
    "entry",
    ["shop.example:8000", "http://shop.example", "*", "*.", "a*.example", "shöp.example", "a b", "*.10.0.0.0/8"],
)
def test_an_invalid_entry_is_named(entry: str) -> None:
    """A misspelt entry would silently allow nothing, or everything."""
    with pytest.raises(ValueError, match="is not a host"):
        AllowedHosts([entry])
