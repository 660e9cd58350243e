"""Exact ranking of label vectors: score mixes, excluded labels, and the selection on validation queries."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from export.quality import SearchRanker
from training.data.dataset import Split
from training.data.ragged import Ragged
from training.evaluation import ranking as ranking_module
from training.evaluation.imputation import Imputation
from training.evaluation.ranking import ExactRanker, rank_labels, score_rows
from training.evaluation.results import EvaluationData, evaluate
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix, mixes_by_head, popularity
from training.evaluation.selection.select import choose_mix, select
from training.recipe.sections import ValidationRecipe

EMPTY = Ragged.from_lists([[] for _ in range(9)])
MIXES = [ScoreMix(0.0, 0.0), ScoreMix(0.0, 0.2), ScoreMix(0.3, 0.0), ScoreMix(0.3, 0.6), ScoreMix(1.0, 0.1)]
Encoded = tuple[QueryVectors, LabelVectors]


def unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


ALL_TRAINED = Imputation(np.empty(0, np.int64), torch.zeros(0, 4), torch.zeros(4))


@pytest.fixture
def encoded() -> Encoded:
    generator = torch.Generator().manual_seed(2)
    return (
        QueryVectors(unit(generator, 9, 6), unit(generator, 9, 4)),
        LabelVectors(unit(generator, 30, 6), unit(generator, 30, 4), torch.rand(30, generator=generator), ALL_TRAINED),
    )


@pytest.fixture
def equal_labels() -> Encoded:
    """Return one query, and 300 labels that differ only in popularity, which rises with the row to 1."""
    one = F.normalize(torch.ones(1, 4), dim=-1)
    return QueryVectors(one, one), LabelVectors(
        one.repeat(300, 1), one.repeat(300, 1), torch.arange(1, 301) / 300, ALL_TRAINED
    )


def by_definition(encoded: Encoded, mix: ScoreMix) -> torch.Tensor:
    """Compute scores [Q, L] by the formula in the docstring of training.evaluation.scoring."""
    queries, labels = encoded
    w, b = mix.weight, mix.popularity
    return (1 - w) * queries.dual @ labels.dual.T + w * (
        queries.classifier @ labels.classifier.T + b * labels.popularity
    )


def test_rankings_are_those_of_the_score(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, metrics would not be the model's; the block size must not matter."""
    monkeypatch.setattr(ranking_module, "SCORES_PER_BLOCK", 70)
    for mix, ranking in rank_labels(*encoded, MIXES, EMPTY).items():
        assert ranking.tolist() == by_definition(encoded, mix).topk(10).indices.tolist()


def test_a_mix_given_twice_is_ranked_once(encoded: Encoded) -> None:
    """If this failed, a run whose best weight is 0 or 1 would fail at validation, where a head equals the model."""
    ranking = rank_labels(*encoded, [MIXES[3], MIXES[3]], EMPTY)[MIXES[3]]
    assert ranking.tolist() == by_definition(encoded, MIXES[3]).topk(10).indices.tolist()


def test_equal_scores_go_by_row_number(equal_labels: Encoded) -> None:
    """If this failed, labels with the same tokens would be in random order, and differ from the served index."""
    mix = ScoreMix(0.2, 0.0)
    ranking = rank_labels(*equal_labels, [mix], Ragged.from_lists([[0]]))[mix]
    assert (np.diff(ranking[0]) > 0).all()


def test_of_labels_that_look_equal_labels_the_popular_one_comes_first(equal_labels: Encoded) -> None:
    """If this failed, a label that is nearly always right would rank no higher than one that was right once."""
    for mix in (ScoreMix(0.2, 0.3), ScoreMix(1.0, 0.05)):
        ranking = rank_labels(*equal_labels, [mix], Ragged.from_lists([[298]]))[mix]
        assert ranking[0].tolist() == [299, *range(297, 288, -1)]
    dual_alone = ScoreMix(0.0, 0.3)  # knows nothing of popularity
    assert (np.diff(rank_labels(*equal_labels, [dual_alone], Ragged.empty(1))[dual_alone][0]) > 0).all()


def test_excluded_labels_never_appear_and_what_is_missing_is_padded(encoded: Encoded) -> None:
    """If this failed, excluded labels would count as predictions, at some mix or in a short ranking."""
    queries, labels = encoded
    few = LabelVectors(labels.dual[:11], labels.classifier[:11], labels.popularity[:11], ALL_TRAINED)
    exclude = Ragged.from_lists([[1, 2, 3]] * 9)
    for ranking in rank_labels(queries, few, MIXES, exclude).values():
        assert not np.isin(ranking, [1, 2, 3]).any()
        assert (ranking[:, -2:] == -1).all()
        assert (ranking[:, :-2] >= 0).all()


def data_of(truth: Ragged, inverse_L: np.ndarray, exclude: Ragged | None = None) -> EvaluationData:
    """Queries with these true labels; texts and label counts do not matter."""
    names = [str(row) for row in range(len(truth))]
    split = Split.from_lists(names, names, truth, exclude or Ragged.empty(len(truth)))
    return EvaluationData(split, np.ones(len(inverse_L), np.int64), inverse_L)


def test_the_mix_is_the_best_on_validation_and_the_simplest_of_equals() -> None:
    """If this failed, the classifier weight and popularity bonus would not be those that validation prefers."""

    def chosen(scores: dict[tuple[float, float], float]) -> tuple[ScoreMix, float]:
        return choose_mix({ScoreMix(*mix): score for mix, score in scores.items()})

    assert chosen({(0.5, 0.0): 0.0, (0.9, 0.3): 100.0, (0.5, 0.1): 0.0}) == (ScoreMix(0.9, 0.3), 100.0)
    assert chosen({(0.0, 0.0): 0.0, (0.4, 0.0): 100.0, (0.5, 0.3): 100.0})[0] == ScoreMix(0.5, 0.3)
    assert chosen({(0.5, 0.2): 9.0, (0.5, 0.1): 9.0, (0.7, 0.0): 9.0})[0] == ScoreMix(0.5, 0.1)


@pytest.mark.parametrize(
    ("right", "trained", "expected"),
    [(1, 0.29, 1.0), (1, 0.33, 0.75), (0, 0.39, 0.25), (0, 0.3, 0.5), (1, 0.4, 0.5)],
)
def test_the_cone_fraction_is_chosen_by_the_metrics(right: int, trained: float, expected: float) -> None:
    """If it fails, untrained labels rank above all right answers, or below all of them, for any data."""
    # The untrained label 0 has score 0.48 − 0.24 κ.
    labels = LabelVectors(
        torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [trained / 0.6, 0.0]]), torch.zeros(2),
        Imputation(np.array([0]), torch.tensor([[0.8, -0.3]]), torch.tensor([0.0, 1.0])),
    )  # fmt: skip
    queries = QueryVectors(torch.zeros(1, 2), torch.tensor([[0.6, 0.8]]))
    data = data_of(Ragged.from_lists([[right]]), np.ones(2))
    recipe = ValidationRecipe(metrics=("P@1",))
    selection = select(queries, labels.with_imputation(1.0), data, ([1.0], [0.0]), recipe)
    assert (selection.cone_fraction, selection.score) == (expected, 100.0)
    scores = dict(
        zip(selection.ranker.lists.row_QS[0].tolist(), selection.ranker.scores(selection.mix)[0], strict=True)
    )
    assert scores[0] == pytest.approx(0.48 - 0.24 * expected)
    assert not labels.classifier[0].any(), "the vectors passed in must not change"


def test_search_that_ignores_excluded_labels_gives_the_same_result_as_exact_ranking(encoded: Encoded) -> None:
    """If this failed, the quality check of an export would compare metrics that are computed differently."""
    queries, labels = encoded
    exclude = Ragged.from_lists([[3, 7], [], [1], [2], [], [29, 0, 5], [], [8], []])
    data = data_of(Ragged.from_lists([[row, row + 9, row + 18] for row in range(9)]), np.arange(1.0, 31.0), exclude)
    mix = ScoreMix(0.3, 0.0)
    scores_QL = by_definition(encoded, mix)
    search = SearchRanker(lambda weight, k: scores_QL.topk(k).indices.numpy(), list(exclude))
    exact = evaluate(ExactRanker(queries, labels, exclude), data, mixes_by_head(mix), ks=(1, 5))
    found = evaluate(search, data, {"unified": mix}, ks=(1, 5))
    assert found.metrics["unified"] == exact.metrics["unified"]
    assert found.rankings["unified"].tolist() == exact.rankings["unified"][:, :5].tolist()


def test_scores_are_those_that_the_ranking_was_made_by(encoded: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, an answer would be shown with another label's score, or a missing one with a real score."""
    monkeypatch.setattr(ranking_module, "QUERIES_PER_BLOCK", 4)
    for mix in MIXES:
        ranking = rank_labels(*encoded, [mix], EMPTY)[mix]
        expected = np.take_along_axis(by_definition(encoded, mix).numpy(), ranking, axis=1)
        np.testing.assert_allclose(score_rows(*encoded, ranking, mix), expected, atol=1e-6)
        ranking[:, -1] = -1
        found = score_rows(*encoded, ranking, mix)
        assert np.isneginf(found[:, -1]).all()
        assert np.isfinite(found[:, :-1]).all()


def test_each_head_scores_without_the_other(encoded: Encoded) -> None:
    """If this failed, a head's metrics would depend on the other head."""
    ends = mixes_by_head(ScoreMix(0.4, 0.2))
    assert ends["unified"] == ScoreMix(0.4, 0.2)
    queries, labels = encoded
    without_dual = dataclasses.replace(queries, dual=torch.zeros(9, 6))
    without_classifier = dataclasses.replace(queries, classifier=torch.zeros(9, 4))
    for head, others in (("dual_encoder", without_classifier), ("classifier", without_dual)):
        mix = ends[head]
        found = rank_labels(queries, labels, [mix], EMPTY)[mix]
        assert found.tolist() == rank_labels(others, labels, [mix], EMPTY)[mix].tolist()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_popularity_rises_with_positives_from_0_to_1(counts: list[int]) -> None:
    """If this failed, a rarer label could gain more from popularity, or b would mean something else on each set."""
    popularity_L = popularity(np.array(counts))
    assert popularity_L.min() >= 0
    assert popularity_L.max() == (1 if max(counts) else 0)
    for count, popular in zip(counts, popularity_L, strict=True):
        assert (popular == 0) == (count == 0)
        for other_count, other in zip(counts, popularity_L, strict=True):
            assert popular > other or count <= other_count
