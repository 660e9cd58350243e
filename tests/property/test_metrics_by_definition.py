"""The metrics, compared with loops that follow their definitions."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.metrics import evaluate

N_LABELS = 9


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[float]]:
    n_queries, width = draw(st.integers(1, 6)), draw(st.integers(1, N_LABELS))
    top, truth = [], []
    for _ in range(n_queries):
        found = draw(st.lists(st.integers(0, N_LABELS - 1), unique=True, max_size=width))
        top.append(found + [-1] * (width - len(found)))
        truth.append(draw(st.lists(st.integers(0, N_LABELS - 1), unique=True, max_size=N_LABELS)))
    truth[0] = truth[0] or [0]
    inverse = draw(st.lists(st.floats(1.0, 50.0), min_size=N_LABELS, max_size=N_LABELS))
    return top, truth, inverse


def by_definition(top: list[list[int]], truth: list[list[int]], inverse: list[float], k: int) -> dict[str, float]:
    rows = [(found[:k], set(true)) for found, true in zip(top, truth, strict=True) if true]
    precision = [sum(label in true for label in found) / k for found, true in rows]
    recall = [sum(label in true for label in found) / len(true) for found, true in rows]
    ndcg = []
    for found, true in rows:
        gain = sum(1 / math.log2(rank + 2) for rank, label in enumerate(found) if label in true)
        ndcg.append(gain / sum(1 / math.log2(rank + 2) for rank in range(min(k, len(true)))))
    gained = sum(inverse[label] for found, true in rows for label in found if label in true)
    best = sum(sum(sorted((inverse[label] for label in true), reverse=True)[:k]) for _, true in rows)
    correct = {label for found, true in rows for label in found if label in true}
    every = {label for _, true in rows for label in true}
    mean = {"P": precision, "nDCG": ndcg, "R": recall}
    figures = {f"{name}@{k}": 100 * sum(values) / len(values) for name, values in mean.items()}
    return figures | {f"PSP@{k}": 100 * gained / best, f"C@{k}": 100 * len(correct) / len(every)}


@given(rankings(), st.integers(1, 12))
def test_metrics_equal_their_definitions(case: tuple[list[list[int]], list[list[int]], list[float]], k: int) -> None:
    """If it fails, the vectorised metrics differ from their definition for some rankings."""
    top, truth, inverse = case
    top_QK, true_labels = np.array(top), [np.array(labels, np.int64) for labels in truth]
    expected = by_definition(top, truth, inverse, k)
    figures = evaluate(top_QK, true_labels, np.array(inverse), ks=(k,))
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(figures[name], value, abs_tol=1e-9), name
        assert -1e-9 <= value <= 100 + 1e-9
