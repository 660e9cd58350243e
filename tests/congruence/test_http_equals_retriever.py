"""A trained bundle over HTTP and through the library: the same labels, scores and contributions."""

from pathlib import Path

from retrieval import open_bundle
from retrieval.results import hit_record
from tests.support.service import serving
from training.data.dataset import Dataset

QUERIES = 500


def test_real_queries_get_the_same_answers(store: Path, dataset_folder: Path) -> None:
    """Clients of the service would get other answers than those that were evaluated with the library."""
    queries = Dataset.open(dataset_folder).split("test").texts[:QUERIES]
    assert len(queries) == QUERIES
    with serving(store) as service, service.client() as client, open_bundle(store) as retriever:
        for query in queries:
            reply = client.post("/predict", {"queries": [query]})
            assert reply.status == 200
            (hits,) = retriever.search([query])
            wanted = {"query": query, "hits": [hit_record(hit) for hit in hits]}
            assert reply.json() == {"bundle": retriever.name, "results": [wanted]}
        client.close()
