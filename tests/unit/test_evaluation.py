"""Ranking a model's vectors: exact search, excluded labels, how the halves are mixed."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from training.data.ragged import Ragged
from training.evaluation import scoring as evaluation
from training.evaluation.imputation import Imputed
from training.evaluation.scoring import Blend, LabelVectors, Vectors

EMPTY = Ragged.from_lists([[] for _ in range(9)])
BLENDS = [Blend(0.0, 0.0), Blend(0.0, 0.2), Blend(0.3, 0.0), Blend(0.3, 0.6), Blend(1.0, 0.1)]
Halves = tuple[Vectors, LabelVectors]


def unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


ALL_LEARNED = Imputed(np.empty(0, np.int64), torch.zeros(0, 4), torch.zeros(4))


@pytest.fixture
def halves() -> Halves:
    generator = torch.Generator().manual_seed(2)
    return (
        Vectors(unit(generator, 9, 6), unit(generator, 9, 4)),
        LabelVectors(unit(generator, 30, 6), unit(generator, 30, 4), torch.rand(30, generator=generator), ALL_LEARNED),
    )


@pytest.fixture
def alike() -> Halves:
    """One query, and 300 labels that only their popularity tells apart: it rises with the row, to 1."""
    one = F.normalize(torch.ones(1, 4), dim=-1)
    return Vectors(one, one), LabelVectors(
        one.repeat(300, 1), one.repeat(300, 1), torch.arange(1, 301) / 300, ALL_LEARNED
    )


def by_definition(halves: Halves, blend: Blend) -> torch.Tensor:
    """The scores [Q, L] as the module's docstring writes them."""
    queries, labels = halves
    w, b = blend
    return (1 - w) * queries.dual @ labels.dual.T + w * (
        queries.classifier @ labels.classifier.T + b * labels.popularity
    )


def test_rankings_are_those_of_the_score(halves: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the reported figures would not be the model's; small blocks must change nothing."""
    monkeypatch.setattr(evaluation, "SCORES_PER_BLOCK", 70)
    for blend, ranking in evaluation.rank(*halves, BLENDS, EMPTY, searched=BLENDS).items():
        assert ranking.tolist() == by_definition(halves, blend).topk(10).indices.tolist()


def test_a_blend_asked_for_twice_is_ranked_once(halves: Halves) -> None:
    """If this failed, a run whose best weight is 0 or 1 would end at its first validation: a head is the model."""
    ranking = evaluation.rank(*halves, [BLENDS[3], BLENDS[3]], EMPTY, searched=[BLENDS[3]])[BLENDS[3]]
    assert ranking.tolist() == by_definition(halves, BLENDS[3]).topk(10).indices.tolist()


def test_blends_between_the_searched_ones_rank_what_those_found(
    halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, the blend would be chosen on rankings that miss what both halves put first."""
    monkeypatch.setattr(evaluation, "SHORTLIST", 12)
    between, searched = [Blend(0.3, 0.0), Blend(0.6, 0.1)], Blend(0.5, 0.2)
    exact = evaluation.rank(*halves, [*between, searched], EMPTY, searched=[*between, searched])
    listed = evaluation.rank(*halves, [*between, searched], EMPTY)
    assert listed[searched].tolist() == exact[searched].tolist()
    for blend in between:
        assert (listed[blend][:, :3] == exact[blend][:, :3]).all()


def test_equal_scores_go_by_row_number(alike: Halves) -> None:
    """If this failed, labels of the same tokens would be ranked by chance, and differently from the served index."""
    blend = Blend(0.2, 0.0)
    ranking = evaluation.rank(*alike, [blend], Ragged.from_lists([[0]]), searched=[blend])[blend]
    assert (np.diff(ranking[0]) > 0).all()


def test_of_labels_that_look_alike_the_popular_one_comes_first(alike: Halves) -> None:
    """If this failed, a label that is nearly always right would rank no higher than one that was right once."""
    for blend in (Blend(0.2, 0.3), Blend(1.0, 0.05)):
        ranking = evaluation.rank(*alike, [blend], Ragged.from_lists([[298]]), searched=[blend])[blend]
        assert ranking[0].tolist() == [299, *range(297, 288, -1)]
    dual_alone = Blend(0.0, 0.3)  # knows nothing of popularity
    assert (np.diff(evaluation.rank(*alike, [dual_alone], Ragged.empty(1))[dual_alone][0]) > 0).all()


def test_excluded_labels_never_appear_and_what_is_missing_is_padded(halves: Halves) -> None:
    """If this failed, a query's own text would count as a prediction, at some blend or in a full ranking."""
    queries, labels = halves
    few = LabelVectors(labels.dual[:11], labels.classifier[:11], labels.popularity[:11], ALL_LEARNED)
    exclude = Ragged.from_lists([[1, 2, 3]] * 9)
    for ranking in evaluation.rank(queries, few, BLENDS, exclude).values():
        assert not np.isin(ranking, [1, 2, 3]).any()
        assert (ranking[:, -2:] == -1).all()
        assert (ranking[:, :-2] >= 0).all()


def test_the_blend_is_the_best_on_validation_and_the_plainest_among_equals() -> None:
    """If this failed, the mix of the halves would not be the one that validation prefers."""
    truth = Ragged.from_lists([[0], [1]])
    right, wrong = np.array([[0], [1]]), np.array([[1], [0]])
    inverse = np.ones(2)

    def chosen(rankings: dict[Blend, np.ndarray]) -> tuple[Blend, float]:
        return evaluation.choose_blend(rankings, truth, inverse, ["P@1"])

    assert chosen({Blend(0.5, 0.0): wrong, Blend(0.9, 0.3): right, Blend(0.5, 0.1): wrong}) == (Blend(0.9, 0.3), 100.0)
    assert chosen({Blend(0.0, 0.0): wrong, Blend(0.4, 0.0): right, Blend(0.5, 0.3): right})[0] == Blend(0.5, 0.3)
    assert chosen({Blend(0.5, 0.2): right, Blend(0.5, 0.1): right, Blend(0.7, 0.0): right})[0] == Blend(0.5, 0.1)


def test_the_blend_is_chosen_by_the_mean_of_its_metrics() -> None:
    """If this failed, a recipe's `validation.metrics` would not decide between precision and tail."""
    truth, inverse = Ragged.from_lists([[0], [0], [1]]), np.array([1.0, 9.0])
    rankings = {Blend(0.5, 0.2): np.array([[0], [0], [0]]), Blend(0.5, 0.0): np.array([[1], [1], [1]])}
    assert evaluation.choose_blend(rankings, truth, inverse, ["P@1"]) == (Blend(0.5, 0.2), pytest.approx(200 / 3))
    best, score = evaluation.choose_blend(rankings, truth, inverse, ["P@1", "PSP@1"])
    assert best == Blend(0.5, 0.0)
    assert score == pytest.approx((100 / 3 + 100 * 9 / 11) / 2)


@pytest.mark.parametrize(("right", "learned", "kept"), [(1, 0.3, 1.0), (0, 0.39, 0.25), (0, 0.3, 0.5), (1, 0.4, 0.5)])
def test_how_far_behind_a_new_label_stands_is_chosen_by_the_metrics(right: int, learned: float, kept: float) -> None:
    """If it fails, labels nobody has seen stand before the right answers, or behind all of them, whatever the data."""
    # The new label's score is 0.48 − 0.24 κ.
    labels = LabelVectors(
        torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [learned / 0.6, 0.0]]), torch.zeros(2),
        Imputed(np.array([0]), torch.tensor([[0.8, -0.3]]), torch.tensor([0.0, 1.0])),
    )  # fmt: skip
    found = evaluation.choose_kept(
        Vectors(torch.zeros(1, 2), torch.tensor([[0.6, 0.8]])), labels, Blend(1.0, 0.0), Ragged.from_lists([[]]),
        Ragged.from_lists([[right]]), np.ones(2), ["P@1"],
    )  # fmt: skip
    assert found == (kept, 100.0)
    torch.testing.assert_close(labels.classifier[0], torch.tensor([0.8, -0.3 * kept]))


def test_scores_are_those_that_the_ranking_was_made_by(halves: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, an answer would be shown with another label's score, or a missing one with a real score."""
    monkeypatch.setattr(evaluation, "TEXTS_A_BATCH", 4)
    for blend in BLENDS:
        ranking = evaluation.rank(*halves, [blend], EMPTY, searched=[blend])[blend]
        expected = np.take_along_axis(by_definition(halves, blend).numpy(), ranking, axis=1)
        np.testing.assert_allclose(evaluation.scores(*halves, ranking, blend), expected, atol=1e-6)
        ranking[:, -1] = -1
        found = evaluation.scores(*halves, ranking, blend)
        assert np.isneginf(found[:, -1]).all()
        assert np.isfinite(found[:, :-1]).all()


def test_the_heads_stand_at_either_end_of_the_weight(halves: Halves) -> None:
    """If this failed, a head's figures would be measured with some of the other head in them."""
    ends = evaluation.by_head(Blend(0.4, 0.2))
    assert ends["unified"] == Blend(0.4, 0.2)
    queries, labels = halves
    without_dual = dataclasses.replace(queries, dual=torch.zeros(9, 6))
    without_classifier = dataclasses.replace(queries, classifier=torch.zeros(9, 4))
    for head, others in (("dual_encoder", without_classifier), ("classifier", without_dual)):
        blend = ends[head]
        found = evaluation.rank(queries, labels, [blend], EMPTY, searched=[blend])[blend]
        assert found.tolist() == evaluation.rank(others, labels, [blend], EMPTY, searched=[blend])[blend].tolist()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_popularity_rises_with_positives_from_0_to_1(counts: list[int]) -> None:
    """If this failed, a rarer label could gain more from popularity, or b would mean something else on each set."""
    popularity_L = evaluation.popularity(np.array(counts))
    assert popularity_L.min() >= 0
    assert popularity_L.max() == (1 if max(counts) else 0)
    for count, popular in zip(counts, popularity_L, strict=True):
        assert (popular == 0) == (count == 0)
        for other_count, other in zip(counts, popularity_L, strict=True):
            assert popular > other or count <= other_count
