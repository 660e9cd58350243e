"""The structure of a body, counted before it is parsed."""

import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Refusal
from service.http import schemas
from service.http.admin_schemas import ActivateRequest, compare_request, paused_request
from service.http.body_limits import JsonLimits, check_structure
from service.http.schemas import parse, predict_request
from service.settings import Settings

SETTINGS = Settings(store="s")
PREDICT = predict_request(SETTINGS)
MODELS = [PREDICT, compare_request(PREDICT), paused_request(SETTINGS), ActivateRequest]
SIZE = SETTINGS.max_body_bytes
NONE = JsonLimits(0, 0, 0)


def repeated(start: bytes, unit: bytes, end: bytes) -> bytes:
    """Repeat a unit as often as fits into a body."""
    return start + unit * ((SIZE - len(start) - len(end)) // len(unit)) + end


HOSTILE = {
    "filter of empty lists": b'{"queries":["a"],"filter":{%b}}'
    % b",".join(b'"%d":[%b]' % (name, b",".join([b"[]"] * 340)) for name in range(1000)),
    "unknown fields": b"{%b}" % b",".join(b'"%x":1' % name for name in range(100_000)),
    "one key again and again": repeated(b"{", b'"k":1,', b'"k":1}'),
    "lists": repeated(b'{"queries":[', b"[],", b"1]}"),
    "objects": repeated(b'{"queries":[', b"{},", b"1]}"),
    "numbers": repeated(b'{"queries":[', b"1,", b"1]}"),
    "texts": repeated(b'{"queries":[', b'"a",', b'"a"]}'),
    "ids": repeated(b'{"add":[', b'"",', b'"a"]}'),
    "escaped quotes between texts": repeated(b'{"queries":[', b'"\\"",', b'"a"]}'),
    "names without values": repeated(b'{"a":[', b'"a":', b"1]}"),
    "escaped backslashes": repeated(b'{"queries":["', b"\\\\", b'"]}'),
    "escaped quotes": repeated(b'{"queries":["', b'\\"', b'"]}'),
    "texts of one backslash": repeated(b'{"queries":[', b'"\\\\",', b'"a"]}'),
    "depth": b"[" * SIZE,
    "depth of objects": repeated(b"", b'{"a":', b""),
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_body_of_a_million_values_is_not_parsed(
    model: type[schemas.RequestBody], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request would keep the service busy for seconds and take gigabytes."""

    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(model, "model_validate_json", parsed)
    with pytest.raises(Refusal) as refused:
        parse(model, body)
    assert (refused.value.status, refused.value.code) == (422, "too_many_values")


@pytest.mark.parametrize("make", [
    lambda: {"queries": ['a, b: [c] {d} "e" \\'.ljust(512, ",")] * 256, "k": 100},
    lambda: {"queries": ["é" * 512] * 256, "filter": {f"a{name}": [1, True] * 40 for name in range(16)}},
    lambda: {"queries": ['\\"' * 256] * 256},
    lambda: {"queries": ["a"], "filter": {"a": [f"{value:050d}" for value in range(1000)]}},
])  # fmt: skip
def test_the_largest_good_requests_pass(make: Callable[[], dict[str, object]]) -> None:
    """Punctuation inside texts would count as structure, and good requests would be refused."""
    for ascii_only in (True, False):
        body = json.dumps(make(), ensure_ascii=ascii_only).encode()
        assert len(body) > 40_000
        assert parse(PREDICT, body).queries == make()["queries"]


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_characters_of_strings_do_not_count(value: object) -> None:
    """A text with brackets or quotes, escaped or not, would change what is counted."""
    body = json.dumps(value).encode() + b" " * 3000

    def counted(value: object) -> tuple[int, int, int]:
        inner = list(value) if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []
        members = len(value) if isinstance(value, dict) else 0
        found = [counted(one) for one in inner]
        more = [sum(column) for column in zip(*found, strict=True)] or [0, 0, 0]
        is_container = isinstance(value, list | dict)
        entries = members or len(inner)
        return members + more[0], is_container + more[1], max(entries, 0) + more[2]

    members, containers, values = counted(value)
    strings = body.count(b'"')
    check_structure(body, JsonLimits(members, containers, values + strings))
    if members:
        with pytest.raises(Refusal):
            check_structure(body, JsonLimits(members - 1, containers, values + strings))
    if containers:
        with pytest.raises(Refusal):
            check_structure(body, JsonLimits(members, containers - 1, values + strings))


def test_errors_are_not_enumerated() -> None:
    """A filter with thousands of invalid values would be validated completely, only to name the first of them."""
    body = b'{"queries":["a"],"filter":{"a":[%b]}}' % b",".join([b"null"] * 16_000)
    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match=r"^filter\[a\]"):
            parse(PREDICT, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_filter_is_limited_in_bytes() -> None:
    """A filter of a megabyte would be sent to the engine with every slice of a request: 32 times."""
    for values, accepted in ((600, True), (700, False)):
        body = json.dumps({"queries": ["a"], "filter": {"a": ["x" * 100] * values}}).encode()
        if accepted:
            parse(PREDICT, body)
            continue
        with pytest.raises(Refusal, match=r"filter has \d+ bytes; the maximum is 65536"):
            parse(PREDICT, body)


def test_an_error_does_not_repeat_a_long_name() -> None:
    """The answer to a bad filter would be as large as its body."""
    body = b'{"queries":["a"],"filter":{"%b":[]}}' % (b"x" * 500_000)
    with pytest.raises(Refusal) as refused:
        parse(PREDICT, body)
    assert refused.value.code == "bad_filter"
    assert len(refused.value.message) < 200
