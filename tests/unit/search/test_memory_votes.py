"""The votes of the query memory: the formula, masks, and the training queries that support a label."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.bundle.memory_labels import MemoryLabels
from retrieval.search.memory_votes import cast_votes, neighbour_shares, supporters

LABELS = MemoryLabels(
    np.array([0, 2, 2, 5]), np.array([4, 1, 0, 1, 3], np.int32), np.array([1.0, 0.5, 1.0, 1.0, 0.25], np.float32)
)  # queries 0: {4: 1, 1: ½}, 1: none, 2: {0: 1, 1: 1, 3: ¼}


def by_definition(
    neighbours: np.ndarray, similarities: np.ndarray, temperature: float, labels: MemoryLabels
) -> dict[tuple[int, int], float]:
    """Return the vote of each query and label by the formula in the docstring of the module."""
    votes: dict[tuple[int, int], float] = {}
    for query, (rows, scores) in enumerate(zip(neighbours, similarities, strict=True)):
        softmax = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
        for row, share, score in zip(rows, softmax, scores, strict=True):
            for place in range(labels.starts_M1[row], labels.starts_M1[row + 1]):
                pair = (query, int(labels.label_V[place]))
                votes[pair] = votes.get(pair, 0.0) + share * max(score, 0.0) * labels.weight_V[place]
    return {pair: vote for pair, vote in votes.items() if vote > 0}


@given(
    st.integers(1, 5).flatmap(
        lambda queries: st.lists(
            st.lists(st.tuples(st.integers(0, 2), st.floats(-0.5, 1.0, width=32)), min_size=3, max_size=3),
            min_size=queries, max_size=queries,
        )
    ),
    st.sampled_from([0.03, 0.1, 1.0]),
)  # fmt: skip
def test_votes_are_those_of_the_formula(drawn: list[list[tuple[int, float]]], temperature: float) -> None:
    """If this failed, the served scores would not be score + γ · Σ softmax(s/τ) · s · y."""
    neighbours = np.array([[row for row, _ in one] for one in drawn])
    similarities = np.array([[score for _, score in one] for one in drawn])
    votes = cast_votes(neighbours, neighbour_shares(similarities, temperature), LABELS)
    pairs = list(zip(votes.query_P.tolist(), votes.label_P.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    expected = by_definition(neighbours, similarities, temperature, LABELS)
    assert dict(zip(pairs, votes.vote_P.tolist(), strict=True)) == pytest.approx(expected, abs=1e-12)


def test_a_label_that_is_not_allowed_gets_no_vote() -> None:
    """If this failed, a paused label, or one that a filter excludes, would enter an answer through the memory."""
    shares = neighbour_shares(np.array([[0.9, 0.8]]), 0.1)
    votes = cast_votes(np.array([[0, 2]]), shares, LABELS, np.array([True, False, True, True, False]))
    assert votes.label_P.tolist() == [0, 3]


def test_a_masked_neighbour_casts_no_vote() -> None:
    """If this failed, an evaluated training query would vote for its true labels."""
    shares = neighbour_shares(np.array([[-np.inf, 0.5], [-np.inf, -np.inf]]), 0.1)
    assert shares.tolist() == [[0.0, 0.5], [0.0, 0.0]]
    assert cast_votes(np.array([[0, 2], [0, 2]]), shares, LABELS).label_P.tolist() == [0, 1, 3]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_without_queries_or_neighbours_there_are_no_votes(shape: tuple[int, int]) -> None:
    """If this failed, an empty batch or an empty memory would end in a traceback."""
    votes = cast_votes(np.zeros(shape, np.int64), neighbour_shares(np.zeros(shape), 0.1), LABELS)
    assert [len(part) for part in votes] == [0, 0, 0]


def test_supporters_are_the_neighbours_that_vote_for_the_label() -> None:
    """If this failed, a hit would be explained by training queries that do not have its label."""
    neighbours, shares = np.array([0, 1, 2]), np.array([0.5, 0.3, 0.4])
    both = [(2, pytest.approx(0.4)), (0, pytest.approx(0.25))]
    assert supporters(neighbours, shares, LABELS, [1, 2, -1], 5) == [both, [], []]
    assert supporters(neighbours, shares, LABELS, [3, 1], 1) == [[(2, pytest.approx(0.1))], both[:1]]
    votes = cast_votes(neighbours[None], shares[None], LABELS)
    (found,) = supporters(neighbours, shares, LABELS, [1], 5)
    assert sum(vote for _, vote in found) == pytest.approx(votes.vote_P[1])
