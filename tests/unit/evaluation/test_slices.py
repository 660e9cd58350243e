"""Label frequency, query length, worst queries and examples, against hand-made cases."""

import numpy as np
import pytest

from retrieval.metrics import evaluate, ratios
from training.data.ragged import Ragged
from training.evaluation import slices

GROUPS = {"head": np.array([True, True, False, False]), "tail": np.array([False, False, True, True])}
RANKING_QK = np.array([[0, 2, 1], [3, 1, -1], [2, 3, 0]])
TRUTH = Ragged.from_lists([[0, 2], [0, 1, 3], [1]])


def test_head_torso_and_tail_hold_a_third_of_the_positives_each() -> None:
    """If this failed, head, torso and tail would not each have a third of the positives."""
    groups = slices.frequency_groups(np.array([1, 10, 5, 0, 5, 1, 1, 1, 1, 1, 1, 3, 0]))
    assert np.flatnonzero(groups["head"]).tolist() == [1]
    assert np.flatnonzero(groups["torso"]).tolist() == [2, 4]
    assert np.flatnonzero(groups["tail"]).tolist() == [0, 5, 6, 7, 8, 9, 10, 11]
    assert np.flatnonzero(groups["unseen"]).tolist() == [3, 12]


def test_labels_of_equal_count_stay_together() -> None:
    """If this failed, equally frequent labels would be head or tail by their row number."""
    groups = slices.frequency_groups(np.array([2, 2, 2, 2, 0]))
    assert groups["torso"].tolist() == [True, True, True, True, False]
    assert not groups["head"].any()
    assert not groups["tail"].any()


def test_without_a_positive_every_label_is_unseen() -> None:
    """If this failed, a dataset with only new labels would end in a division by zero."""
    groups = slices.frequency_groups(np.zeros(3, np.int64))
    assert groups["unseen"].all()
    assert sum(member.sum() for member in groups.values()) == 3


def test_figures_by_label_frequency_by_hand() -> None:
    """If this failed, metrics would be attributed to the wrong labels."""
    figures = slices.percent(slices.label_group_ratios(RANKING_QK, TRUTH, GROUPS, ks=(1, 2)))
    assert figures["head"]["P@1"] == pytest.approx(100 * 1 / 3)
    assert figures["tail"]["P@1"] == pytest.approx(100 * 1 / 3)
    assert figures["head"]["P@2"] == pytest.approx(100 * (1 + 1) / 6)
    assert figures["head"]["R@2"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)
    assert figures["tail"]["R@2"] == pytest.approx(100 * (1 + 1) / 2)


def test_a_group_without_a_true_label_is_left_out() -> None:
    """If this failed, a table would show NaN for a group without true labels."""
    figures = slices.label_group_ratios(RANKING_QK, Ragged.from_lists([[0], [1], [0]]), GROUPS, ks=(1,))
    assert list(figures) == ["head"]


def test_metrics_by_query_length_are_those_of_these_queries_only() -> None:
    """If this failed, metrics of a query length would include other queries."""
    texts, inverse_L = ["one", "two words", "five words are in  here"], np.array([1.0, 2.0, 3.0, 4.0])
    of_queries = ratios(RANKING_QK, TRUTH, inverse_L, ks=(1, 3))
    figures = slices.percent(slices.query_group_ratios(of_queries, slices.length_groups(texts)))
    assert list(figures) == ["1 word", "2 words", "5–8 words"]
    for row, of in enumerate(figures.values()):
        alone = evaluate(RANKING_QK[row : row + 1], [TRUTH[row]], inverse_L, ks=(1, 3))
        assert of == pytest.approx({name: alone[name] for name in of})


def test_labels_are_grouped_by_the_days_since_they_were_first_seen() -> None:
    """If this failed, labels of the evaluated period itself would count as known ones, or days at a border twice."""
    groups = slices.age_groups(np.array([-3, 0, 1, 6, 7, 29, 30, 400, np.nan], np.float32))
    assert {name: np.flatnonzero(member_L).tolist() for name, member_L in groups.items()} == {
        "new": [0, 1],
        "1–6 days": [2, 3],
        "7–29 days": [4, 5],
        "30+ days": [6, 7],
        "unknown": [8],
    }


def test_every_query_has_one_length() -> None:
    """If this failed, a query would be missing from the table by length, or counted twice."""
    groups = slices.length_groups(["", "a", "a b", "a b c", "a b c d", "w " * 5, "w " * 8, "w " * 9, "w " * 40])
    assert np.sum([*groups.values()], axis=0).tolist() == [1] * 9
    assert [int(member.sum()) for member in groups.values()] == [2, 1, 2, 2, 2]


def test_the_worst_query_misses_most_and_perfect_ones_are_not_listed() -> None:
    """If this failed, the list would contain correct queries, or be in the wrong order."""
    ranking_QK = np.array([[0, 1], [2, 3], [2, 3], [0, 4], [4, 5], [4, 5]])
    truth = Ragged.from_lists([[0, 1, 5], [0], [0, 1, 4], [0, 1], [], [6]])
    assert slices.worst_queries(ranking_QK, truth, 10).tolist() == [2, 1, 5, 3]
    assert slices.worst_queries(ranking_QK, truth, 2).tolist() == [2, 1]
    assert slices.worst_queries(ranking_QK, truth, 0).tolist() == []


def test_an_example_shows_answers_and_true_labels() -> None:
    """If this failed, an example would show a wrong answer as a true label, or true labels out of order."""
    shown = slices.example(
        "q",
        np.array([2, 0, -1]),
        np.array([1, 2]),
        ["a", "b", "c"],
        np.array([5, 9, 0]),
        np.array([0.5, 0.25, -np.inf]),
    )
    assert [(answer.label, answer.positives, answer.hit, answer.score) for answer in shown.answers] == [
        ("c", 0, True, 0.5),
        ("a", 5, False, 0.25),
    ]
    assert [(label.label, label.positives, label.hit) for label in shown.truth] == [("b", 9, False), ("c", 0, True)]
