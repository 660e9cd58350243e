"""The response cache: spellings of one query share an answer, which names the text of the request."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic_core import to_json

from service.bundles.manager import ServedState
from service.engine.protocol import Query
from service.http.predict import response_body
from service.http.response_cache import ResponseCache, cache_key, without_texts
from service.observe.metrics import Metrics

STATE = ServedState(1, 0, 1)


def body(texts: list[str], hits: list[list[Any]]) -> bytes:
    results = [to_json({"query": text, "hits": found}) for text, found in zip(texts, hits, strict=True)]
    return response_body("bundle", b",".join(results))


def hit(**fields: Any) -> dict[str, Any]:
    return {"id": "a", "text": "b", "attributes": {}, "score": 0.5, **fields}


def test_spellings_share_an_entry_and_see_their_text() -> None:
    """Each spelling would be encoded again, or a client would get another client's text back."""
    cache = ResponseCache(1_000_000, Metrics(CollectorRegistry()))
    first, other = ["Red  SHOES", 'a "b"'], ["red\u00a0shoes", 'A\u200b "B"']
    hits = [[hit()], [hit(id="c")]]
    cache.add(cache_key(STATE, Query.create(first, 2)), first, body(first, hits))
    key = cache_key(STATE, Query.create(other, 2))
    assert cache.get(key, other) == body(other, hits)
    assert cache.get(key, first) == body(first, hits)


@pytest.mark.parametrize(
    "different",
    [
        cache_key(STATE._replace(generation=2), Query.create(["red"], 2)),
        cache_key(STATE._replace(pause_version=1), Query.create(["red"], 2)),
        cache_key(STATE, Query.create(["red"], 3)),
        cache_key(STATE, Query.create(["red"], 2, weight=0.5)),
        cache_key(STATE, Query.create(["red"], 2, filter={"market": ["US"]})),
        cache_key(STATE, Query.create(["red"], 2, min_score=0.1)),
        cache_key(STATE, Query.create(["red", "red"], 2)),
        cache_key(STATE, Query.create(["rèd"], 2)),
    ],
)
def test_other_queries_options_and_states_have_other_keys(different: object) -> None:
    """An answer would be returned for other options, for another bundle, or with a paused label."""
    assert cache_key(STATE, Query.create(["red"], 2)) != different


def test_a_bundle_that_reads_texts_as_they_are_has_a_key_per_spelling() -> None:
    """Older bundles would return the answer of another spelling, which their encoders read differently."""
    older = STATE._replace(query_identity=0)
    assert cache_key(older, Query.create(["ｒｅｄ"], 2)) != cache_key(older, Query.create(["red"], 2))


TRICKY = st.sampled_from(['"', "]},{", '"query":', '","hits":[', '"results":[{"query":', "\\", "é", "x"])
ANY_TEXT = st.text() | st.lists(TRICKY).map("".join)
ATTRIBUTES = st.dictionaries(ANY_TEXT, ANY_TEXT | st.lists(ANY_TEXT))
HITS = st.lists(st.fixed_dictionaries({"id": ANY_TEXT, "text": ANY_TEXT, "attributes": ATTRIBUTES}), max_size=2)


@given(st.lists(st.tuples(ANY_TEXT, HITS, ANY_TEXT), min_size=1, max_size=4))
def test_the_text_of_each_result_is_replaced(results: list[tuple[str, list[Any], str]]) -> None:
    """A label that looks like a part of a response would mix up the texts and hits of a cached answer."""
    texts, hits, others = map(list, zip(*results, strict=True))
    parts = without_texts(body(texts, hits), texts)
    replaced = b"".join(part + text for part, text in zip(parts, [*map(to_json, others), b""], strict=True))
    assert replaced == body(others, hits)
    assert [result["query"] for result in json.loads(replaced)["results"]] == others
