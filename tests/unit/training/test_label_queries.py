"""Label queries: their positives, targets and number."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.batching import label_queries as gandalf
from training.batching.cooccurrence import WALK_STEPS, random_walks
from training.batching.label_queries import default_share, label_queries, related_labels, sampled_labels
from training.data.dataset import Split
from training.data.ragged import Ragged
from training.recipe.sections import LabelQueriesRecipe

N_LABELS = 7
ROWS = st.lists(st.sets(st.integers(0, N_LABELS - 1), min_size=1), min_size=1, max_size=25)
THRESHOLDS = st.sampled_from([0.0, 0.31, 0.57, 0.83])  # none of them is the cosine of two small sets


def neighbouring_labels(labels: Ragged, n_labels: int, most: int, threshold: float) -> Ragged:
    related, target_V = related_labels(labels, n_labels, LabelQueriesRecipe(max_positives=most, threshold=threshold))
    assert target_V.tolist() == [1.0] * len(related.values)
    return related


def cosine(label: int, other: int, rows: list[set[int]]) -> float:
    """Return the cosine of two labels' query sets; 0 if they share fewer than two queries."""
    mine, theirs = ({q for q, row in enumerate(rows) if one in row} for one in (label, other))
    shared = len(mine & theirs)
    return shared / math.sqrt(len(mine) * len(theirs)) if shared >= 2 else 0.0


@given(ROWS, st.integers(1, N_LABELS), THRESHOLDS, st.integers(1, N_LABELS + 1))
def test_neighbours_are_the_nearest_by_their_queries(
    rows: list[set[int]], most: int, threshold: float, block: int
) -> None:
    """If it fails, label queries get unrelated labels as positives, or the block size changes them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gandalf, "LABELS_PER_BLOCK", block)
        found = neighbouring_labels(Ragged.from_lists([sorted(row) for row in rows]), N_LABELS, most, threshold)
    assert len(found) == N_LABELS
    for label in range(N_LABELS):
        neighbours = found[label].tolist()
        allowed = {other: cosine(label, other, rows) for other in range(N_LABELS) if other != label}
        expected = sorted((near for near in allowed.values() if near and near >= threshold), reverse=True)[:most]
        assert [allowed[other] for other in neighbours] == pytest.approx(expected)
        assert len(set(neighbours)) == len(neighbours)


@pytest.mark.parametrize("block", [1, 2, 1000])
def test_neighbours_come_nearest_first_and_equal_ones_by_row(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, `max_positives` selects other labels than the nearest, or varies between runs."""
    monkeypatch.setattr(gandalf, "LABELS_PER_BLOCK", block)
    shared = [[0, 3, 4, 1]] * 2 + [[0, 3, 4]] * 2 + [[0, 2]] * 2 + [[5], [6, 0]]  # 6 shares one query: chance
    positives = Ragged.from_lists(shared)
    assert neighbouring_labels(positives, N_LABELS, 30, 0.0)[0].tolist() == [3, 4, 1, 2]
    assert neighbouring_labels(positives, N_LABELS, 3, 0.0)[0].tolist() == [3, 4, 1]
    assert neighbouring_labels(positives, N_LABELS, 30, 0.6)[0].tolist() == [3, 4]
    assert neighbouring_labels(positives, N_LABELS, 30, 0.0).lengths.tolist() == [4, 3, 1, 3, 3, 0, 0]


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


LABEL_TEXTS = ["first", "second", "third", "fourth", "alone"]


@pytest.fixture
def train() -> Split:
    """Labels 0 and 1 share two queries, 2 and 3 two others; one of the five queries is the text of label 0."""
    rows = [("x", [0, 1]), ("y", [1, 0]), ("first", [2, 3]), ("z", [3, 2]), ("w", [4])]
    return Split.from_lists(
        [f"q{row}" for row in range(5)], [text for text, _ in rows], Ragged.from_lists(r for _, r in rows),
        Ragged.from_lists([[], [], [0], [], []]),
    )  # fmt: skip


def test_label_queries_are_label_texts_with_their_neighbours(train: Split) -> None:
    """If it fails, a label query duplicates a training query, has itself as positive, or has none."""
    extra = label_queries(train, LABEL_TEXTS, LabelQueriesRecipe(share=1.0)).split
    # No row for "first", which is a training query, nor for "alone", which shares queries with no other label.
    assert extra.texts == ["second", "third", "fourth"]
    assert [labels.tolist() for labels in extra.labels] == [[0], [3], [2]]
    assert [own.tolist() for own in extra.exclude] == [[1], [2], [3]]
    assert not set(extra.ids) & set(train.ids)
    assert len(set(extra.ids)) == 3


@pytest.mark.parametrize(("share", "drawn"), [(0.4, 2), (1.0, 3), (3.0, 3)])
def test_as_many_are_drawn_as_the_share_of_the_training_queries(train: Split, share: float, drawn: int) -> None:
    """If it fails, an epoch has too many label queries, or none; there are three."""
    assert label_queries(train, LABEL_TEXTS, LabelQueriesRecipe(share=share)).per_epoch == drawn


@pytest.mark.parametrize(("share", "texts"), [(0.0, LABEL_TEXTS), (None, LABEL_TEXTS)])
def test_without_a_share_there_are_none(train: Split, share: float | None, texts: list[str]) -> None:
    """If it fails, a dataset whose queries are mostly not labels (one of five here) trains another task."""
    extra = label_queries(train, texts, LabelQueriesRecipe(share=share))
    assert (len(extra), len(extra.split), extra.per_epoch) == (0, 0, 0)


def test_max_positives_and_threshold_follow_the_recipe(train: Split) -> None:
    """If it fails, the recipe's keys are ignored."""
    tripled = Split.from_lists(
        [f"{n}" for n in range(6)], list("uvwxyz"), Ragged.from_lists([[0, 1, 2]] * 3 + [[0, 1]] * 3), Ragged.empty(6)
    )
    for most, threshold, expected in ((1, 0.0, [1]), (5, 0.0, [1, 2]), (5, 0.9, [1])):
        recipe = LabelQueriesRecipe(share=1.0, max_positives=most, threshold=threshold)
        assert label_queries(tripled, LABEL_TEXTS, recipe).split.labels[0].tolist() == expected


def test_the_share_of_queries_that_are_labels() -> None:
    """If it fails, the default number of label queries does not follow the dataset."""
    assert default_share(["a", "b", "b", "c"], ["b", "c", "d"]) == 0.75
    assert default_share(["a", "a", "b", "c"], ["b", "c", "d"]) == 0.0
    assert default_share([], ["b"]) == 0.0


@pytest.mark.parametrize(
    ("targets", "of_first"),
    [
        ("gandalf", {0: 1.0, 1: 2 / 4, 2: 1 / 4}),
        ("glas", {0: logistic(1.0), 1: logistic((2 / 4 + 2 / 2) / 2), 2: logistic((1 / 4 + 1 / 1) / 2)}),
        ("one_hot", {0: 1.0}),
    ],
)
def test_soft_targets_follow_the_papers(targets: str, of_first: dict[int, float]) -> None:
    """If it fails, the targets of neighbours differ from the papers."""
    clicks = Ragged.from_lists([[0, 1], [0, 1], [0, 2], [0], [3]])
    train = Split.from_lists(list("abcde"), ["first", "v", "w", "x", "y"], clicks, Ragged.empty(5))
    recipe = LabelQueriesRecipe(share=1.0, targets=targets)
    extra = label_queries(train, LABEL_TEXTS, recipe)
    begin, end = extra.split.labels.offsets[:2]
    assert extra.label_G[0] == 0, "a label that is a query's text too has a row of its own"
    assert dict(zip(extra.split.labels[0].tolist(), extra.target_V[begin:end].tolist(), strict=True)) == pytest.approx(
        of_first
    )
    assert not extra.split.exclude.lengths.any()


@pytest.mark.parametrize(("targets", "threshold", "kept"), [("gandalf", 0.5, [0]), ("gandalf", 0.49, [0, 1]),
                                                            ("glas", 0.75, [0]), ("glas", 0.74, [0, 1])])  # fmt: skip
def test_a_target_must_be_above_the_threshold(targets: str, threshold: float, kept: list[int]) -> None:
    """If it fails, targets equal to δ stay, which equation 1.6 leaves out; GLaS compares S before σ."""
    clicks = Ragged.from_lists([[0, 1], [0, 1], [0, 2], [0], [3]])  # G_01 / G_00 = 0.5, S_01 = 0.75
    recipe = LabelQueriesRecipe(share=1.0, targets=targets, threshold=threshold)
    assert sorted(related_labels(clicks, 4, recipe)[0][0].tolist()) == kept


def test_random_walks_visit_labels_as_often_as_they_occur_together() -> None:
    """If it fails, the random-walk graph relates labels that share no chain of queries, or has other frequencies."""
    clicks = Ragged.from_lists([[0, 1], [0], [2, 3], [4]])
    (block,) = random_walks(clicks, 6, seed=0)
    visits = {(label, other): count for label, other, count in zip(*(part.tolist() for part in block), strict=True)}
    assert set(visits) == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3), (4, 4)}
    assert visits[4, 4] == WALK_STEPS
    # p = 0.8 · ¼ + 0.2 · ((1 − p) · ¼ + p · ½) for the share p of steps that end at label 1
    assert visits[0, 1] / WALK_STEPS == pytest.approx(0.263, abs=0.06)
    split = list(random_walks(clicks, 6, seed=0, block=2))
    assert [part.tolist() for part in map(np.concatenate, zip(*split, strict=True))] == [
        part.tolist() for part in block
    ]


def test_gandalf_accepts_the_random_walk_graph() -> None:
    """If it fails, targets from visits are above 1, or a label is not its own positive."""
    clicks = Ragged.from_lists([[0, 1]] * 3 + [[1]] * 9 + [[2]])
    related, target_V = related_labels(clicks, 4, LabelQueriesRecipe(share=1.0, targets="gandalf", graph="random_walk"))
    assert related[0].tolist() in ([0, 1], [1, 0])
    assert target_V.max() == 1.0
    assert related[3].tolist() == []


@pytest.mark.parametrize("order", ["random", "tail_first"])
def test_a_share_of_the_labels_becomes_label_queries(order: str) -> None:
    """If it fails, subsampling takes another number of labels, or frequent labels first."""
    counts_L = np.array([9, 1, 5, 2, 7, 1, 3, 8])
    recipe = LabelQueriesRecipe(labels_share=0.5, labels_order=order)
    sampled_L = sampled_labels(counts_L, recipe, seed=3)
    assert sampled_L.sum() == 4
    assert (sampled_L.tolist() == (counts_L <= 3).tolist()) == (order == "tail_first")
    assert sampled_labels(counts_L, recipe, seed=3).tolist() == sampled_L.tolist()


def test_an_epoch_of_label_queries_needs_some() -> None:
    """If it fails, an epoch has no rows."""
    with pytest.raises(ValueError, match="set share above 0"):
        LabelQueriesRecipe(epoch="only")
