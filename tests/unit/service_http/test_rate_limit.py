"""Token buckets per caller, and how a caller is identified."""

import pytest

from service.access.callers import caller_of
from service.access.rate_limit import RateLimit, texts_for_bytes
from service.errors import Refusal, longest_retry


def seconds_until_retry(limit: RateLimit, caller: bytes, texts: int, now: float) -> int:
    with pytest.raises(Refusal) as refused:
        limit.take(caller, texts, now=now)
    assert (refused.value.status, refused.value.code) == (429, "rate_limited")
    assert refused.value.headers
    return int(refused.value.headers["Retry-After"])


def test_a_caller_gets_its_rate_and_no_more() -> None:
    """A limit would ignore the burst, let a caller accumulate without bound, or give a Retry-After at which it still
    refuses.
    """
    limit = RateLimit(rate=2, burst=4)
    limit.take(b"a", 4, now=100)
    limit.take(b"b", 4, now=100)
    assert seconds_until_retry(limit, b"a", 3, now=100.5) in range(1, longest_retry(1) + 1)
    limit.take(b"a", 3, now=101.5)
    limit.take(b"a", 4, now=10_000)
    seconds_until_retry(limit, b"a", 1, now=10_000)


def test_the_time_to_retry_is_that_of_the_complete_request() -> None:
    """A request that is charged in two steps would get a Retry-After at which it is refused again."""
    limit = RateLimit(rate=1, burst=10)
    limit.take(b"a", 9, now=0)
    limit.take(b"a", 1, now=0)
    with pytest.raises(Refusal, match=r"in 8 s\.$"):
        limit.take(b"a", 7, now=0, request_texts=8)
    limit.take(b"a", 1, now=8)
    limit.take(b"a", 7, now=8, request_texts=8)


def test_a_flood_of_new_callers_spares_no_throttled_one() -> None:
    """Ten thousand forged addresses would reset the busiest caller's limit, or fill the memory."""
    limit = RateLimit(rate=1, burst=10, max_callers=100)
    limit.take(b"heavy", 10, now=0)
    refused = 0
    for number in range(1000):
        try:
            limit.take(b"%d" % number, 1, now=0.001 * number)
        except Refusal:
            refused += 1
    assert len(limit._full_at) == 100
    assert refused > 800  # those that share the last bucket
    seconds_until_retry(limit, b"heavy", 10, now=1.5)
    limit.take(b"newcomer", 10, now=30)  # those that came once are forgotten first


def test_jitter_is_bounded_and_in_whole_seconds() -> None:
    """All clients that were refused together would return together, or wait much too long."""
    limit = RateLimit(rate=1, burst=100)
    limit.take(b"a", 100, now=0)
    seen = {seconds_until_retry(limit, b"a", 40, now=0) for _ in range(200)}
    assert min(seen) >= 40
    assert max(seen) <= 50
    assert len(seen) > 1


@pytest.mark.parametrize(("size", "texts"), [(0, 1), (1, 1), (8192, 1), (8193, 2), (1 << 20, 128), (1 << 30, 256)])
def test_a_large_body_is_charged_before_it_is_parsed(size: int, texts: int) -> None:
    """A refused caller could still make the service parse megabytes, or no large request would be admitted."""
    assert texts_for_bytes(size, 256) == texts


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unknown", "unknown", True),
        ("not:an:address", "another:one", False),
    ],
)
def test_an_ipv6_caller_is_its_network(one: str, other: str, same: bool) -> None:
    """A single IPv6 customer has 2⁶⁴ addresses, each with a separate rate and share."""
    assert (caller_of(None, one) == caller_of(None, other)) is same


def test_a_key_is_the_caller_wherever_it_comes_from() -> None:
    """A caller with a key would have a share for each of its machines, or lose its share to a neighbour's."""
    assert caller_of(b"key", "192.0.2.1") == caller_of(b"key", "2001:db8::1") != caller_of(None, "192.0.2.1")
