"""Filtered search against its definition: the k best of the labels that a plain loop allows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import Retriever, open_bundle
from retrieval.search.attributes import Attributes
from tests.support.bundles import WORDS, make_bundle

MARKETS, TAGS = ["US", "CA", "MX"], ["new", "warm", "old"]
LABELS = st.lists(
    st.tuples(
        st.none() | st.sampled_from(MARKETS), st.none() | st.integers(0, 3), st.none() | st.lists(st.sampled_from(TAGS))
    ),
    max_size=30,
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "market": st.lists(st.sampled_from([*MARKETS, "ZZ"]), min_size=1, max_size=3),
        "year": st.lists(st.integers(-1, 4), min_size=1, max_size=3),
        "tags": st.lists(st.sampled_from([*TAGS, "none"]), min_size=1, max_size=2),
    },
)


def fits(label: dict[str, Any], wanted: dict[str, list[Any]]) -> bool:
    def holds(value: Any, values: list[Any]) -> bool:
        return bool(set(value) & set(values)) if isinstance(value, list) else value in values

    return all(holds(label[name], values) for name, values in wanted.items())


@given(LABELS, FILTERS)
def test_a_compiled_filter_is_the_plain_one(labels: list[Any], wanted: dict[str, list[Any]]) -> None:
    """If it fails, some combination of gaps, lists and values allows labels that the filter excludes."""
    columns = list(zip(*labels, strict=True)) or [[], [], []]
    table = pa.table(
        {
            "market": pa.array(columns[0], pa.string()),
            "year": pa.array(columns[1], pa.int32()),
            "tags": pa.array(columns[2], pa.list_(pa.string())),
        }
    )
    allowed = Attributes(table).allowed(wanted)
    assert allowed.rows_R.tolist() == [row for row, label in enumerate(table.to_pylist()) if fits(label, wanted)]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("filtered") / "words", ef_search=(200, 200, 200)))


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "market": st.lists(st.sampled_from(MARKETS), min_size=1, max_size=2),
            "year": st.lists(st.integers(2019, 2023), min_size=1, max_size=2),
        },
    ),
    st.integers(1, 250),
    st.sampled_from([None, 0.0, 0.4, 1.0]),
    st.none() | st.floats(-1, 1),
)
def test_a_filtered_search_is_the_exact_one_cut_down(
    retriever: Retriever, queries: list[str], wanted: dict[str, Any], k: int, weight: float | None, least: float | None
) -> None:
    """If it fails, a filter or a minimum score changes scores or order, or loses labels that exist."""
    whole = retriever.search_rows(queries, 200, weight=weight, exact=True)
    found = retriever.search_rows(queries, k, weight=weight, filter=wanted, min_score=least)
    labels = retriever.labels.take(np.arange(200))
    for query, hits in enumerate(retriever.search(queries, k, weight=weight, filter=wanted, min_score=least)):
        expected = [
            score
            for row, score in zip(whole.rows_QK[query], whole.scores_QK[query], strict=True)
            if fits(labels[row], wanted) and (least is None or score >= least)
        ][:k]
        assert all(fits(hit.attributes, wanted) for hit in hits)
        assert (found.rows_QK[query] >= 0).sum() == len(hits)
        if least is None or all(abs(score - least) > 1e-5 for score in whole.scores_QK[query]):
            np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
