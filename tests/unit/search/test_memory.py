"""The query memory of a bundle: scores with votes, filters, paused labels, and supporting training queries."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retrieval import open_bundle
from retrieval.errors import BadInput
from retrieval.results import Hit
from retrieval.retriever import Retriever
from tests.support.bundles import VOTES, WORDS, label_texts, make_bundle, memory_queries

QUERIES = ["cheap running shoes", "red winter city", "light rain", "kids blue", "unknown", "trail"]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    folder = make_bundle(tmp_path_factory.mktemp("bundles") / "words", memory=VOTES)
    with open_bundle(folder, threads=1, paused=()) as opened:
        yield opened


def by_definition(retriever: Retriever, query: str, gamma: float, weight: float) -> dict[int, float]:
    """Compute the score of every label of one query by the formula in the docstring of memory_votes."""
    texts, label_lists = memory_queries(label_texts())
    (dual, classifier), (_, training) = retriever.encode([query]), retriever.encode(texts)
    halves = np.split(retriever.vectors_LD / retriever.manifest.model.label_scale(), [24], axis=1)
    scores_L = (1 - weight) * halves[0] @ dual[0] + weight * halves[1] @ classifier[0]
    similarity_M = training @ classifier[0]
    nearest = np.argsort(-similarity_M, kind="stable")[: VOTES.neighbours]
    shares = np.exp(similarity_M[nearest] / VOTES.temperature)
    shares = shares / shares.sum() * np.maximum(similarity_M[nearest], 0)
    weight_V = np.linspace(0.25, 1, sum(map(len, label_lists)), dtype=np.float32)
    starts = np.cumsum([0, *map(len, label_lists)])
    for row, share in zip(nearest.tolist(), shares.tolist(), strict=True):
        for place, label in enumerate(label_lists[row]):
            scores_L[label] += gamma * share * weight_V[starts[row] + place]
    return dict(enumerate(scores_L.tolist()))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("gamma", "weight"), [(0.3, 0.5), (2.0, 0.0), (0.1, 1.0)])
def test_scores_are_those_of_the_formula(retriever: Retriever, exact: bool, gamma: float, weight: float) -> None:
    """If this failed, the best labels would not be those of score + γ · Σ softmax(s/τ) · s · y."""
    ranking = retriever.search_rows(QUERIES, 10, weight=weight, memory_weight=gamma, exact=exact)
    parts_QK = ranking.dual_QK + ranking.classifier_QK + ranking.memory_QK
    np.testing.assert_allclose(ranking.scores_QK, parts_QK, atol=1e-12)
    for place, query in enumerate(QUERIES):
        scores = by_definition(retriever, query, gamma, weight)
        expected = sorted(scores.values(), reverse=True)[:10]
        np.testing.assert_allclose(ranking.scores_QK[place], expected, atol=1e-5)
        np.testing.assert_allclose([scores[row] for row in ranking.rows_QK[place].tolist()], expected, atol=1e-5)


def test_labels_that_only_the_memory_proposes_enter_the_answer(retriever: Retriever) -> None:
    """If this failed, the votes could only reorder what the label index finds."""
    plain, voted = (retriever.search(QUERIES, 3, memory_weight=weight) for weight in (0.0, 5.0))
    new = [{hit.id for hit in after} - {hit.id for hit in before} for before, after in zip(plain, voted, strict=True)]
    assert any(new)
    assert all(hit.memory == 0.0 for hits in plain for hit in hits)


def test_the_default_weight_is_that_of_the_bundle(retriever: Retriever) -> None:
    """If this failed, requests without the option would be answered without the votes that training selected."""
    assert retriever.search(QUERIES, 5) == retriever.search(QUERIES, 5, memory_weight=VOTES.weight)
    assert retriever.search(QUERIES, 5) != retriever.search(QUERIES, 5, memory_weight=0.0)


def test_a_batch_answers_like_single_queries(retriever: Retriever) -> None:
    """If this failed, the same query would have other answers depending on the other queries of its batch."""
    queries = [f"{one} {other}" for one in WORDS for other in WORDS][:130] * 3  # more than one pass
    together = retriever.search_rows(queries, 10)
    for place in (0, 1, 129, 257, 389):
        single = retriever.search_rows([queries[place]], 10)
        assert together.rows_QK[place].tolist() == single.rows_QK[0].tolist()
        np.testing.assert_allclose(together.scores_QK[place], single.scores_QK[0], atol=1e-6)
    hits = retriever.hits(together, supporting=3)
    assert _ids(hits[389]) == _ids(hits[129])


def _ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


@pytest.mark.parametrize("k", [3, 200])
def test_filters_and_paused_labels_hold_for_votes(retriever: Retriever, k: int) -> None:
    """If this failed, a label that is excluded by a filter, or paused, would return through its votes."""
    strong = {"memory_weight": 10.0}
    answers = retriever.search(QUERIES, k, filter={"market": ["US"]}, **strong)  # type: ignore[arg-type]
    assert all(hit.attributes["market"] == "US" for hits in answers for hit in hits)
    first = retriever.search(QUERIES, 1, **strong)  # type: ignore[arg-type]
    paused = {hits[0].id for hits in first}
    try:
        retriever.pause(paused)
        answers = retriever.search(QUERIES, k, **strong)  # type: ignore[arg-type]
        assert not paused & {hit.id for hits in answers for hit in hits}
        assert all(len(hits) == min(k, 200 - len(paused)) for hits in answers)
    finally:
        retriever.pause([])


def test_min_score_applies_to_the_score_with_votes(retriever: Retriever) -> None:
    """If this failed, a hit that reaches the minimum only with its votes would be missing."""
    (hits,) = retriever.search(QUERIES[:1], 10)
    least = hits[4].score
    assert least > hits[4].dual_encoder + hits[4].classifier
    assert len(retriever.search(QUERIES[:1], 10, min_score=least)[0]) >= 5


def test_supporting_queries_explain_a_vote(retriever: Retriever) -> None:
    """If this failed, a hit would name training queries that did not vote for its label, or miss the strongest."""
    texts, label_lists = memory_queries(label_texts())
    for hits in retriever.search(QUERIES[:4], 5, supporting=10):
        for hit in hits:
            row = int(hit.id.removeprefix("label-"))
            assert sum(one.share for one in hit.supporting) == pytest.approx(hit.memory, abs=1e-9)
            assert all(row in label_lists[texts.index(one.query)] for one in hit.supporting)
            shares = [one.share for one in hit.supporting]
            assert shares == sorted(shares, reverse=True)
    (limited,) = retriever.search(QUERIES[:1], 5, supporting=1)
    assert max(len(hit.supporting) for hit in limited) == 1
    assert all(hit.supporting == () for hits in retriever.search(QUERIES, 5) for hit in hits)
    assert all(
        not hit.supporting for hits in retriever.search(QUERIES, 5, memory_weight=0, supporting=2) for hit in hits
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_weight": -0.1}, r"memory_weight is -0.1; it must be from 0 \(no votes\) to 10"),
        ({"memory_weight": 11}, "memory_weight is 11"),
        ({"memory_weight": float("nan")}, "memory_weight is nan"),
        ({"memory_weight": True}, "memory_weight is True"),
        ({"supporting": 11}, "supporting is 11; it must be an integer from 0 to 10"),
        ({"supporting": True}, "supporting is True"),
        ({"supporting": 1.5}, "supporting is 1.5"),
    ],
)
def test_a_bad_option_is_named(retriever: Retriever, options: dict[str, float], said: str) -> None:
    """If this failed, a bad option would end in a traceback, or silently give other answers."""
    with pytest.raises(BadInput, match=said):
        retriever.search(QUERIES, 3, **options)  # type: ignore[arg-type]


def test_a_bundle_without_memory_refuses_the_option(tmp_path: Path) -> None:
    """If this failed, a caller would believe that votes are in the scores."""
    with open_bundle(make_bundle(tmp_path / "words"), threads=1, paused=()) as plain:
        with pytest.raises(BadInput, match="the bundle has no query memory"):
            plain.search(QUERIES, 3, memory_weight=0.2)
        assert all(hit.memory == 0.0 and hit.supporting == () for hit in plain.search(QUERIES, 3, supporting=2)[0])
        assert plain.search(QUERIES, 3, memory_weight=0.0) == plain.search(QUERIES, 3)
