"""Spellings of real queries through torch, ONNX and HTTP: all give the answer of the plain spelling."""

from pathlib import Path

import pytest
import torch

from retrieval import open_bundle
from retrieval.results import hit_record
from tests.support.service import figures, serving
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.data.token_cache import tokenize_in_memory
from training.evaluation.encoding import encode_queries

QUERIES = 25
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {0x20: 0x3000}


def spellings(query: str) -> list[str]:
    """Return a query of printable ASCII, and other spellings of it."""
    return [
        query,
        query.upper(),
        query.title(),
        query.translate(FULL_WIDTH),
        "\u200b".join(query),
        query.replace(" ", "\u00a0"),
        f"\ufeff \t{query.replace(' ', '   ')}\u3000",
    ]


@pytest.fixture(scope="module")
def queries(dataset_folder: Path) -> list[str]:
    texts = Dataset.open(dataset_folder).split("test").texts
    return [text for text in texts if text.isascii() and " " in text][:QUERIES]


def test_torch_encodes_them_alike(checkpoint: Path, queries: list[str]) -> None:
    """If it fails, `diptych evaluate` measures other answers for a spelling than for the query."""
    opened = load_checkpoint(checkpoint)
    for query in queries:
        tokens = tokenize_in_memory(spellings(query), opened.tokenizer)
        assert [row.tolist() for row in tokens.ids] == [tokens.ids[0].tolist()] * len(tokens)
        vectors = encode_queries(opened.unified, tokens, torch.device("cpu"))
        # The rows of a batch may differ in the last bits: vector instructions treat its end in another way.
        torch.testing.assert_close(vectors.dual, vectors.dual[:1].expand_as(vectors.dual), rtol=0, atol=1e-6)


def test_a_bundle_answers_them_alike(store: Path, queries: list[str]) -> None:
    """If it fails, the query memory, the splits and the search treat one query as several."""
    with open_bundle(store) as retriever:
        assert retriever.manifest.model.query_identity == 1
        for query in queries:
            answers = [list(retriever.search([text])) for text in spellings(query)]
            assert answers == [answers[0]] * len(answers)


def test_a_service_answers_them_alike_from_one_entry_of_its_cache(store: Path, queries: list[str]) -> None:
    """If it fails, each spelling is encoded again, or gets the answer or the text of another one."""
    with open_bundle(store) as retriever, serving(store, cache_bytes=10_000_000) as service:
        with service.client() as client:
            for query in queries:
                (hits,) = retriever.search([query])
                for text in spellings(query):
                    results = client.post("/predict", {"queries": [text]}).json()["results"]
                    assert results == [{"query": text, "hits": [hit_record(hit) for hit in hits]}]
        assert figures(service)['diptych_cache_requests_total{result="miss"}'] == len(queries)
