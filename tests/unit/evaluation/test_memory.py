"""The query memory in an evaluation: rankings with votes, the selection of their settings, and the stored queries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retrieval.bundle.memory_labels import MAX_LABELS_PER_QUERY, NO_VOTES, MemoryLabels, VoteSettings
from training.data.memory_queries import labels_of, memory_queries
from training.data.ragged import Ragged
from training.data.split import Split
from training.evaluation import ranking as ranking_module
from training.evaluation.imputation import Imputation
from training.evaluation.memory import QueryMemory
from training.evaluation.ranking import ExactRanker, rank_labels
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix, mixes_by_head
from training.evaluation.selection.select import select
from training.recipe.sections import MemoryRecipe, ValidationRecipe

VOTES = VoteSettings(0.4, 0.1, 3)
MIX = ScoreMix(0.5, 0.1, VOTES)
ALL_TRAINED = Imputation(np.empty(0, np.int64), torch.zeros(0, 4), torch.zeros(4))


def unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.fixture
def encoded() -> tuple[QueryVectors, LabelVectors, QueryMemory]:
    """Return 9 queries, 40 labels and a memory of 20 training queries with 2 labels each."""
    generator = torch.Generator().manual_seed(2)
    draw = np.random.default_rng(2)
    label_V = np.concatenate([draw.choice(40, 2, replace=False) for _ in range(20)]).astype(np.int32)
    memory = QueryMemory(
        QueryVectors(unit(generator, 20, 6), unit(generator, 20, 4)),
        MemoryLabels(np.arange(21) * 2, label_V, draw.uniform(0.2, 1, 40).astype(np.float32)),
    )
    return (
        QueryVectors(unit(generator, 9, 6), unit(generator, 9, 4)),
        LabelVectors(unit(generator, 40, 6), unit(generator, 40, 4), torch.rand(40, generator=generator), ALL_TRAINED),
        memory,
    )


def by_definition(queries: QueryVectors, labels: LabelVectors, memory: QueryMemory) -> torch.Tensor:
    """Compute scores [Q, L] by the formula in the docstring of training.evaluation.scoring, at MIX."""
    scores_QL = 0.5 * queries.dual @ labels.dual.T + 0.5 * (
        queries.classifier @ labels.classifier.T + 0.1 * labels.popularity
    )
    similarity_QM = queries.classifier @ memory.vectors.classifier.T
    for query in range(len(scores_QL)):
        nearest = similarity_QM[query].argsort(descending=True)[:3]
        shares = torch.softmax(similarity_QM[query, nearest] / 0.1, 0) * similarity_QM[query, nearest].clamp(min=0)
        for row, share in zip(nearest.tolist(), shares.tolist(), strict=True):
            for place in (2 * row, 2 * row + 1):
                scores_QL[query, memory.labels.label_V[place]] += 0.4 * share * memory.labels.weight_V[place]
    return scores_QL


def test_rankings_and_scores_have_the_votes(
    encoded: tuple[QueryVectors, LabelVectors, QueryMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, validation would select settings by other scores than the served ones."""
    queries, labels, memory = encoded
    monkeypatch.setattr(ranking_module, "SCORES_PER_BLOCK", 90)
    ranker = ExactRanker(queries, labels, Ragged.empty(9), memory=memory)
    rows_QK = ranker.rank([MIX])[MIX]
    expected = by_definition(queries, labels, memory).topk(10)
    assert rows_QK.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(ranker.scores(rows_QK, MIX), expected.values, atol=1e-6)


def test_a_label_that_only_the_memory_proposes_is_ranked(
    encoded: tuple[QueryVectors, LabelVectors, QueryMemory],
) -> None:
    """If this failed, rankings would lack the labels that only the nearest training queries have."""
    queries, labels, memory = encoded
    strong = MIX._replace(memory=VOTES._replace(weight=5.0))
    without = rank_labels(queries, labels, [MIX._replace(memory=NO_VOTES)], Ragged.empty(9))
    voted = rank_labels(queries, labels, [strong], Ragged.empty(9), memory=memory)[strong]
    proposed = [set(rows) - set(others) for rows, others in zip(voted, *without.values(), strict=True)]
    assert any(proposed)


def test_an_excluded_label_gets_no_rank_from_its_votes(encoded: tuple[QueryVectors, LabelVectors, QueryMemory]) -> None:
    """If this failed, a label that the dataset excludes for a query would count as a wrong answer."""
    queries, labels, memory = encoded
    strong = MIX._replace(memory=VOTES._replace(weight=10.0))
    ranker = ExactRanker(queries, labels, Ragged.empty(9), memory=memory)
    first = ranker.rank([strong])[strong][:, :2]
    excluding = ExactRanker(queries, labels, Ragged.from_lists(first), memory=memory).rank([strong])[strong]
    assert not (excluding[:, :, None] == first[:, None, :]).any()


def test_a_training_query_does_not_vote_for_itself(encoded: tuple[QueryVectors, LabelVectors, QueryMemory]) -> None:
    """If this failed, the metrics of the training split would count a query's own labels as votes."""
    _, _, memory = encoded
    own = QueryMemory(memory.vectors, memory.labels, own_row_Q=np.array([0, -1, *range(2, 20)]))
    rows_QN, _ = own.neighbours(memory.vectors, slice(0, 20), 3)
    assert [row in rows_QN[row] for row in range(20)] == [row == 1 for row in range(20)]
    all_rows, similarity = own.neighbours(memory.vectors, slice(0, 1), 99)
    assert len(all_rows[0]) == 20
    assert np.isneginf(similarity[0, all_rows[0] == 0]).all()


def test_heads_have_no_votes() -> None:
    """If this failed, a table would show as the dual encoder's what the training queries contribute."""
    assert [mix.memory.weight for mix in mixes_by_head(MIX).values()] == [0.4, 0.0, 0.0]


def selected(encoded: tuple[QueryVectors, LabelVectors, QueryMemory], truth: list[list[int]]) -> ScoreMix:
    queries, labels, memory = encoded
    texts = [str(row) for row in range(9)]
    split = Split.from_lists(texts, texts, Ragged.from_lists(truth), Ragged.empty(9))
    data = EvaluationData(split, np.ones(40, np.int64), np.ones(40))
    recipe = ValidationRecipe(metrics=("P@1",))
    return select(queries, labels, data, ([0.5], [0.0, 0.1]), recipe, memory=memory, votes=MemoryRecipe()).mix


def test_votes_are_selected_only_if_they_help(encoded: tuple[QueryVectors, LabelVectors, QueryMemory]) -> None:
    """If this failed, a memory that makes answers worse would be used, or one that makes them better would not."""
    queries, labels, memory = encoded
    plain = ScoreMix(0.5, 0.1)
    best = rank_labels(queries, labels, [plain], Ragged.empty(9))[plain][:, :1]
    assert selected(encoded, best.tolist()) == plain
    nearest = memory.neighbours(queries, slice(0, 9), 1)[0][:, 0]
    voted = [memory.labels.label_V[2 * row : 2 * row + 2].tolist() for row in nearest]
    assert selected(encoded, voted).memory.weight > 0


def train_split(lists: list[list[int]], weights: list[float] | None = None) -> Split:
    texts = [f"query {row}" for row in range(len(lists))]
    split = Split.from_lists(texts, texts, Ragged.from_lists(lists), Ragged.empty(len(lists)))
    weight_V = None if weights is None else np.array(weights, np.float32)
    return Split(split.ids_column, split.texts_column, split.labels, split.exclude, weight_V)


def test_the_most_clicked_queries_stay_if_there_are_too_many() -> None:
    """If this failed, a limited memory would hold queries that nobody sends, or exceed its limit."""
    stored = memory_queries(train_split([[0], [], [1, 2], [3], [4]], [5.0, 1.0, 1.0, 9.0, 1.0]), 2)
    assert stored is not None
    assert stored.row_M.tolist() == [0, 3]
    assert stored.queries.texts == ["query 0", "query 3"]
    everything = memory_queries(train_split([[0], [], [1, 2]]), 100)
    assert everything is not None
    assert everything.row_M.tolist() == [0, 2]  # a query without a label has no vote
    assert memory_queries(train_split([[0], [1]]), 0) is None
    assert memory_queries(train_split([[]]), 9) is None
    drawn = memory_queries(train_split([[row] for row in range(50)]), 10)
    assert drawn is not None
    assert len(set(drawn.row_M.tolist())) == 10


def test_labels_count_by_their_click_share() -> None:
    """If this failed, a label clicked once would get the same vote as one clicked a hundred times."""
    labels = labels_of(train_split([[3, 1], [2]], [10.0, 5.0, 7.0]))
    assert (labels.label_V.tolist(), labels.weight_V.tolist()) == ([3, 1, 2], [1.0, 0.5, 1.0])
    assert labels_of(train_split([[3, 1], [2]])).weight_V.tolist() == [1.0, 1.0, 1.0]


def test_a_query_with_many_labels_keeps_the_strongest() -> None:
    """If this failed, one training query with thousands of labels would slow down every search near it."""
    many = MAX_LABELS_PER_QUERY + 5
    stored = memory_queries(train_split([list(range(many)), [0]], [*np.arange(1.0, many + 1), 1.0]), 9)
    assert stored is not None
    assert stored.queries.labels[0].tolist() == list(range(5, many))
    assert stored.queries.labels[1].tolist() == [0]
    assert stored.queries.weights_V is not None
    assert len(stored.queries.weights_V) == MAX_LABELS_PER_QUERY + 1
