"""Metrics by label frequency against loops that follow their definition, for random rankings and counts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.metrics import evaluate
from training.data.ragged import Ragged
from training.evaluation import slices

N_LABELS = 7
COUNTS = st.lists(st.integers(0, 6), min_size=N_LABELS, max_size=N_LABELS)
ROWS = st.lists(
    st.tuples(st.permutations(range(N_LABELS)), st.sets(st.integers(0, N_LABELS - 1))), min_size=1, max_size=6
)


@given(COUNTS)
def test_groups_share_out_the_labels_and_fall_in_frequency(counts: list[int]) -> None:
    """If it fails, a label is in no group or in two, or a rarer label counts as more frequent."""
    groups = slices.frequency_groups(np.array(counts))
    assert np.sum([*groups.values()], axis=0).tolist() == [1] * N_LABELS
    present = [[counts[row] for row in np.flatnonzero(member)] for member in groups.values() if member.any()]
    for more, fewer in pairwise(present):
        assert min(more) > max(fewer)


@given(COUNTS, ROWS, st.integers(1, 4))
def test_figures_by_label_frequency_equal_their_definition(
    counts: list[int], rows: list[tuple[list[int], set[int]]], k: int
) -> None:
    """If it fails, a group's recall is not the recall of its labels, or the parts do not add up to P@k."""
    rows = [(ranking, true or {0}) for ranking, true in rows]
    ranking_QK, truth = np.array([ranking for ranking, _ in rows]), Ragged.from_lists([sorted(t) for _, t in rows])
    groups = slices.frequency_groups(np.array(counts))
    figures = slices.percent(slices.label_group_ratios(ranking_QK, truth, groups, ks=(k,)))
    for name, member_L in groups.items():
        members = set(np.flatnonzero(member_L).tolist())
        asked = [(set(ranking[:k]), true & members) for ranking, true in rows if true & members]
        assert (name in figures) == bool(asked)
        if asked:
            recall = sum(len(top & true) / len(true) for top, true in asked) / len(asked)
            precision = sum(len(set(ranking[:k]) & true & members) for ranking, true in rows) / (k * len(rows))
            assert figures[name] == pytest.approx({f"P@{k}": 100 * precision, f"R@{k}": 100 * recall})
    whole = evaluate(ranking_QK, truth, np.ones(N_LABELS), ks=(k,))[f"P@{k}"]
    assert sum(of[f"P@{k}"] for of in figures.values()) == pytest.approx(whole)
