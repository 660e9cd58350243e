"""Compiled filters on attributes: allowed labels, errors, and the cache."""

from typing import Any

import pyarrow as pa
import pytest

from retrieval.errors import BadInput
from retrieval.search.attributes import BYTES_PER_LABEL, Attributes

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "text": ["red", "green", "blue", "grey"],
        "market": ["US", "CA", None, "US"],
        "year": [2020, 2021, 2022, 2020],
        "price": [0.5, 1.0, 2.0, None],
        "live": [True, False, True, None],
        "tags": [["warm", "new"], [], None, ["new"]],
        "brand": pa.array(["x", "y", "x", None]).dictionary_encode(),
        "since": pa.array([0, 1, 2, 3], pa.date32()),
    }
)


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({"market": ["US"]}, [0, 3]),
        ({"market": ["CA", "US"]}, [0, 1, 3]),
        ({"market": ["US"], "year": [2020], "live": [True]}, [0]),
        ({"market": ["MX"]}, []),
        ({"price": [1, 0.5]}, [0, 1]),
        ({"live": [False]}, [1]),
        ({"tags": ["new"]}, [0, 3]),
        ({"tags": ["new", "warm"], "market": ["US"]}, [0, 3]),
        ({"brand": ["x"]}, [0, 2]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_a_filter_allows_what_fits_all_of_its_attributes(wanted: dict[str, Any], rows: list[int]) -> None:
    """If it fails, a filter returns labels of another market, or misses labels of its own."""
    allowed = Attributes(TABLE).allowed(wanted)
    assert allowed.rows_R.tolist() == rows
    assert allowed.count == len(rows)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"country": ["US"]}, "no attribute 'country'. It has: market, year, price, live, tags, brand, since"),
        ({"id": ["a"]}, "no attribute 'id'"),
        ({"year": ["2020"]}, "'year' is int64; '2020' is not"),
        ({"year": [True]}, "'year' is int64; True is not"),
        ({"live": [1]}, "'live' is bool; 1 is not"),
        ({"market": "US"}, "must be a list"),
        ({"market": []}, "give from 1 to 1000"),
        ({"market": [None]}, "give text, a number, true or false"),
        ({"market": ["US"] * 1001}, "give from 1 to 1000"),
        ({f"m{n}": ["US"] for n in range(17)}, "maximum is 16"),
        ({"since": ["1970-01-01"]}, "date32.*which filters do not support"),
        (["market"], "give attributes"),
    ],
)
def test_a_filter_on_an_unknown_attribute_is_one_sentence(wanted: Any, why: str) -> None:
    """If it fails, a misspelt attribute silently gives no hits, or a traceback."""
    with pytest.raises(BadInput, match=why):
        Attributes(TABLE).allowed(wanted)


def test_a_table_without_attributes_says_so() -> None:
    """If it fails, the error for labels without attributes has an empty list of names."""
    with pytest.raises(BadInput, match="It has none"):
        Attributes(TABLE.select(["id", "text"])).allowed({"market": ["US"]})


def test_equal_filters_are_compiled_once_and_unlike_types_are_not_mixed_up() -> None:
    """If it fails, filters are compiled for every request, or 1 and True share a cache entry."""
    attributes = Attributes(TABLE)
    first = attributes.allowed({"market": ["US", "CA"], "year": [2020]})
    assert attributes.allowed({"year": [2020], "market": ["CA", "US", "CA"]}) is first
    attributes.allowed({"live": [True]})
    with pytest.raises(BadInput, match="1 is not"):
        attributes.allowed({"live": [1]})


def test_the_cache_of_filters_is_bounded() -> None:
    """If it fails, a client that sends many different filters fills the memory."""
    cache_bytes = 2 * BYTES_PER_LABEL * TABLE.num_rows
    for bytes_per_label, most in ((BYTES_PER_LABEL, 2), (2 * BYTES_PER_LABEL, 1)):
        attributes = Attributes(TABLE, bytes_per_label, cache_bytes)
        for year in range(100):
            attributes.allowed({"year": [year]})
        assert len(attributes._compiled) == most


def test_several_batches_of_labels_are_one_table() -> None:
    """If it fails, only the first record batch of a label table is filtered."""
    twice = pa.concat_tables([TABLE, TABLE])
    assert Attributes(twice).allowed({"tags": ["new"], "brand": ["x"]}).rows_R.tolist() == [0, 4]


def test_what_is_paused_is_allowed_by_no_filter_until_it_is_not_paused() -> None:
    """If it fails, a cached filter still allows a paused label, or a label stays paused."""
    attributes = Attributes(TABLE)
    assert attributes.allowed({"market": ["US"]}).rows_R.tolist() == [0, 3]
    assert attributes.pause(["d", "none", "c", "d"]) == ["none"]
    assert attributes.paused
    assert attributes.allowed({"market": ["US"]}).rows_R.tolist() == [0]
    assert attributes.allowed({}).rows_R.tolist() == [0, 1]
    assert attributes.pause(["a"]) == []
    assert attributes.allowed({"market": ["US"]}).rows_R.tolist() == [3]
    assert attributes.pause(["none"]) == ["none"]
    assert not attributes.paused
    assert attributes.allowed({"market": ["US"]}).rows_R.tolist() == [0, 3]
