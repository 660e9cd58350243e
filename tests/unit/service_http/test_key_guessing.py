"""Waits after wrong keys: longer each time, for the address that sent them only."""

import pytest
from prometheus_client import CollectorRegistry

from service.access.callers import network_of
from service.access.client_address import ClientAddresses
from service.access.key_guessing import (
    BUCKETS,
    FORGET_SECONDS,
    FREE_ATTEMPTS,
    LONGEST_WAIT_SECONDS,
    MAX_ACCEPTED,
    GuessLimit,
)
from service.access.keys import AdminKeys, PredictKeys
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.request_context import RequestContext

KEY, PREDICT_KEY = "k7Qw-92mXz.Lp4Rt", "Zt5!pq8Rw3-uJ6yM"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wait_of(limit: GuessLimit, address: str) -> int:
    """Seconds that an address has to wait, 0 for none."""
    refused: Refusal | None = None
    try:
        limit.admit(address)
    except Refusal as error:
        refused = error
    if refused is None:
        return 0
    assert (refused.status, refused.code) == (429, "too_many_wrong_keys")
    assert refused.headers is not None
    return int(refused.headers["Retry-After"])


def test_the_wait_grows_and_ends() -> None:
    """Guessing would not be slowed, or a mistake would lock out an administrator forever."""
    clock = Clock()
    limit = GuessLimit(clock)
    waits = []
    for _ in range(FREE_ATTEMPTS + 12):
        clock.now += wait_of(limit, "10.0.0.1")
        assert wait_of(limit, "10.0.0.1") == 0
        limit.wrong("10.0.0.1")
        waits.append(wait_of(limit, "10.0.0.1"))
    assert waits[: FREE_ATTEMPTS - 1] == [0] * (FREE_ATTEMPTS - 1)
    assert waits[FREE_ATTEMPTS - 1 :][:5] == [1, 2, 4, 8, 16]
    assert waits[-1] == LONGEST_WAIT_SECONDS
    clock.now += FORGET_SECONDS + 1
    limit.wrong("10.0.0.1")
    assert wait_of(limit, "10.0.0.1") == 0


@pytest.mark.parametrize(
    ("guesser", "same", "other"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"),
        ("fe80::1%eth0", "fe80::2", "fe81::1"),
        ("unknown", "unknown", "10.0.0.1"),
    ],
)
def test_a_client_is_a_network(guesser: str, same: str, other: str) -> None:
    """An attacker with an IPv6 network would have 2^64 first attempts, or its neighbour would have to wait."""
    limit = GuessLimit(Clock())
    for _ in range(FREE_ATTEMPTS):
        limit.wrong(guesser)
    assert wait_of(limit, same)
    assert not wait_of(limit, other)


def test_a_flood_of_guessers_neither_fills_the_memory_nor_frees_one() -> None:
    """Many addresses would fill the memory, or evict the address that has to wait."""
    limit = GuessLimit(Clock())
    for _ in range(FREE_ATTEMPTS + 5):
        limit.wrong("10.0.0.1")
    for number in range(2 * BUCKETS):
        limit.wrong(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1")
    assert len(limit._wrong) <= BUCKETS
    assert wait_of(limit, "10.0.0.1") > 10
    for number in range(2 * MAX_ACCEPTED):
        limit.remember(f"10.1.{number >> 8}.{number & 255}", "ann")
    assert len(limit._accepted) == MAX_ACCEPTED


def test_a_peer_without_an_address_is_a_separate_client() -> None:
    """A Unix socket's peer, which has no address, would end the request."""
    assert network_of("") == b""
    assert network_of("unknown") == b"unknown"


def request(address: str, **headers: str) -> RequestContext:
    raw_headers = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"path": "/admin/paused", "headers": raw_headers, "client": (address, 1)}
    return RequestContext(scope, "/admin/paused", ClientAddresses("").of)


def test_a_right_key_waits_too_unless_it_was_used_there_before() -> None:
    """Correct guesses would pass during the wait, or all clients behind one proxy could be locked out."""
    clock = Clock()
    guesses, metrics = GuessLimit(clock), Metrics(CollectorRegistry())
    admin, predict = AdminKeys({"ann": KEY}, guesses, metrics), PredictKeys([PREDICT_KEY], guesses, metrics)
    known = request("10.0.0.1", X_Admin_Key=KEY)
    admin.check(known)
    assert known.key_name == "ann"
    for address in ("10.0.0.1", "10.0.0.2"):
        for _ in range(FREE_ATTEMPTS):
            with pytest.raises(Refusal, match="needs the administrator's key"):
                admin.check(request(address, X_Admin_Key="guess"))
    admin.check(request("10.0.0.1", X_Admin_Key=KEY))
    admin.check(request("10.0.0.3", X_Admin_Key=KEY))
    unknown = request("10.0.0.2", X_Admin_Key=KEY)
    with pytest.raises(Refusal, match="Too many wrong keys"):
        admin.check(unknown)
    assert unknown.key_name == "unknown"  # or the audit would tell that the guess was right
    with pytest.raises(Refusal, match="Too many wrong keys"):
        predict.check(request("10.0.0.1", X_Api_Key=PREDICT_KEY))  # both kinds share the wait
    with pytest.raises(Refusal, match="needs a key"):
        predict.check(request("10.0.0.1"))
    clock.now += LONGEST_WAIT_SECONDS
    admin.check(request("10.0.0.2", X_Admin_Key=KEY))
    assert predict.check(request("10.0.0.1", X_Api_Key=PREDICT_KEY))
