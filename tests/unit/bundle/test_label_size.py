"""The size of labels, at export and in the engine's memory."""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from retrieval.bundle.label_size import ESCAPED, MAX_LABEL_BYTES, check_label_size, label_bytes
from retrieval.bundle.labels import LabelTable
from retrieval.bundle.manifest import INDEX, QUERY_ENCODER, TOKENIZER, VECTORS, read_manifest
from retrieval.errors import BadInput
from service.bundles.memory_check import ENGINE_BYTES, needed_memory
from service.engine.label_cache import ENTRY_BYTES, LabelCache
from service.engine.options import LABEL_CACHE_BYTES

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
LISTS = st.lists(st.none() | TEXTS, max_size=4)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": TEXTS,
            "text": TEXTS,
            "number": st.none() | st.integers(-(2**40), 2**40),
            "some": st.none() | TEXTS,
            "list": st.none() | LISTS,
            "deep": st.none() | st.lists(LISTS, max_size=3),
            "fields": st.none() | st.fixed_dictionaries({"a": TEXTS, "b": st.none() | st.booleans()}),
        }
    ),
    min_size=1,
    max_size=5,
)
SCHEMA = pa.schema({
    "id": pa.string(), "text": pa.large_string(), "number": pa.int64(), "some": pa.string(),
    "list": pa.list_(pa.string()), "deep": pa.large_list(pa.list_(pa.string())),
    "fields": pa.struct({"a": pa.string(), "b": pa.bool_()}),
})  # fmt: skip


@given(ROWS, st.booleans())
def test_the_estimate_is_within_its_bounds(rows: list[dict[str, object]], coded: bool) -> None:
    """If it fails, a type of attribute is not counted, and labels with it can have any size."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    if coded:
        table = table.set_column(3, "some", table.column("some").dictionary_encode())
    for row, about in zip(rows, label_bytes(table), strict=True):
        exact = len(to_json(row))
        assert exact <= ESCAPED * about
        assert about <= exact + 40 * (len(SCHEMA) + 20)


@pytest.mark.parametrize(
    "value", ["x" * MAX_LABEL_BYTES, "\x01" * (MAX_LABEL_BYTES // 6), ["ab"] * (MAX_LABEL_BYTES // 4)]
)
def test_a_label_that_is_too_large_is_named(value: object) -> None:
    """If it fails, a bundle with answers of megabytes is exported, or the error does not name the label."""
    table = pa.table({"id": ["good", "bad"], "text": ["a", "b"], "notes": [value[:5], value]})
    with pytest.raises(
        BadInput, match=r"^label 'bad' has .* bytes as JSON, most of them in 'notes'; the limit is 32,768"
    ):
        check_label_size(table)
    check_label_size(table.slice(0, 1))


def test_the_largest_label_passes() -> None:
    """If it fails, the limit is not the documented one, for text with or without escaped characters."""
    for text in ("x" * (MAX_LABEL_BYTES - 60), "\x01" * ((MAX_LABEL_BYTES - 60) // 6)):
        check_label_size(pa.table({"id": ["one"], "text": ["a"], "notes": [text]}))


def test_the_cache_is_bounded_in_bytes() -> None:
    """If it fails, the engine's memory grows with the size of labels until the kernel kills it."""
    texts = [f"label {row} " + "é" * (row % 7 * 100) for row in range(3000)]
    labels = LabelTable(pa.table({"id": [f"id-{row}" for row in range(3000)], "text": texts}))
    cache = LabelCache(labels, max_bytes=500_000)
    for start in range(0, 3000, 10):
        rows = set(range(start, start + 10))
        written = cache.get(rows)
        for row in rows:
            assert json.loads(f"{{{written[row]}}}") == {"id": f"id-{row}", "text": texts[row], "attributes": {}}
        held = sum(sys.getsizeof(text) + ENTRY_BYTES for text in cache._json.values())
        assert held == cache.bytes <= 500_000
    assert len(cache) > 100
    assert cache.get(rows) is cache.get(rows)


def test_one_request_does_not_exceed_the_bound_of_the_cache() -> None:
    """If it fails, many large labels of one answer stay in memory together."""
    labels = LabelTable(pa.table({"id": [f"id-{row}" for row in range(100)], "text": ["x" * 7000] * 100}))
    cache = LabelCache(labels, max_bytes=500_000)
    assert set(cache.get(range(100))) == set(range(100))
    assert cache.bytes <= 500_000
    assert cache.get(range(10)).keys() >= set(range(10))
    assert 0 < cache.bytes <= 500_000


def test_several_threads_share_the_cache() -> None:
    """If it fails, a search fails because another thread changes the cache at the same time."""
    labels = LabelTable(pa.table({"id": [f"id-{row}" for row in range(2000)], "text": ["x" * 100] * 2000}))
    cache = LabelCache(labels, max_bytes=50_000)

    def ask(seed: int) -> None:
        drawing = random.Random(seed)
        for _ in range(300):
            rows = set(drawing.sample(range(2000), 10))
            assert cache.get(rows).keys() >= rows

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert sum(sys.getsizeof(text) + ENTRY_BYTES for text in cache._json.values()) == cache.bytes <= 50_000


def test_a_very_large_label_is_not_kept() -> None:
    """If it fails, one large label evicts all others from the cache with every answer."""
    labels = LabelTable(pa.table({"id": ["small", "large"], "text": ["a", "x" * 100_000]}))
    cache = LabelCache(labels, max_bytes=500_000)
    cache.get({0})
    assert json.loads(f"{{{cache.get({0, 1})[1]}}}")["id"] == "large"
    assert (len(cache), set(cache.get({0}))) == (1, {0})


def test_the_cache_counts_as_memory_of_an_engine() -> None:
    """If it fails, a bundle is loaded although its label cache does not fit, and the kernel kills the engine later."""
    manifest = read_manifest(Path(__file__).parents[2] / "golden" / "v2")
    files = sum(entry.bytes for name, entry in manifest.files.items() if name in (INDEX, QUERY_ENCODER, TOKENIZER))
    assert needed_memory(manifest) >= ENGINE_BYTES + LABEL_CACHE_BYTES + files


def test_the_levels_of_a_cascade_count_as_memory_of_an_engine() -> None:
    """If it fails, a cascade cannot be served, or its rows and its tree do not fit into memory later."""
    manifest = read_manifest(Path(__file__).parents[2] / "golden" / "v5")
    levels = sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(("level_", "parents_")))
    assert needed_memory(manifest) >= ENGINE_BYTES + LABEL_CACHE_BYTES + levels
    assert needed_memory(manifest, ["key"]) >= needed_memory(manifest) + manifest.files[VECTORS].bytes
    two = needed_memory(manifest, engines=2) - needed_memory(manifest)
    assert two >= ENGINE_BYTES + LABEL_CACHE_BYTES
    assert needed_memory(manifest, ["key"], engines=2) == needed_memory(manifest, ["key"]) + two  # vectors are shared
