"""The gates of a cascade's export: shortlists are widened to the recall target, unless exact search is worse.

Suffixes: Q queries, K results, D width of a query vector.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.index.recall import RECALL_TARGET
from export.job import ExportSettings
from export.kinds.cascade import cascade_job, level_cosine
from export.kinds.shortlists import choose_shortlists
from retrieval.errors import GateError
from retrieval.search.cascade_index import CascadeIndex
from retrieval.system.progress import silent_stage
from training.data.ragged import Ragged

CLUSTERS, LABELS, QUERIES = (4, 32), 640, 200


@pytest.fixture
def index() -> CascadeIndex:
    """A cascade whose clusters tell little about their labels, so that short shortlists miss the best ones."""
    rng = np.random.default_rng(0)
    sizes = (*CLUSTERS, LABELS)
    rows = [
        scale * rng.standard_normal((size, 6)).astype(np.float32) for size, scale in zip(sizes, (1, 1, 3), strict=True)
    ]
    return CascadeIndex.build(rows, (np.arange(32) // 8, np.arange(LABELS) // 20), (1, 2))


class Validation:
    """Validation queries whose metrics are the share of exact search's best label, or one that is `exact_is_worse`."""

    def __init__(self, index: CascadeIndex, query_QD: Any, exact_is_worse: bool) -> None:
        best_QK = index.rank(query_QD, 10, exact=True)[0]
        self._best_QK, self._exact_is_worse, self.scored = best_QK, exact_is_worse, len(query_QD)
        truth = Ragged.from_lists([row_K[:1].astype(np.int32) for row_K in best_QK])
        queries = SimpleNamespace(labels=truth, exclude=Ragged.empty(len(query_QD)))
        self.data = SimpleNamespace(queries=queries)

    def metrics(self, search: Any) -> dict[str, float]:
        hits = 100 * float((search(1.0, 10)[:, 0] == self._best_QK[:, 0]).mean())
        return dict.fromkeys(("P@1", "P@5"), 100 - hits if self._exact_is_worse else hits)


def chosen(index: CascadeIndex, exact_is_worse: bool) -> Any:
    query_QD = np.random.default_rng(1).standard_normal((QUERIES, index.dim)).astype(np.float32)
    validation: Any = Validation(index, query_QD, exact_is_worse)
    expected = validation.metrics(lambda weight, k: index.rank(query_QD, k)[0])
    return choose_shortlists(index, query_QD, validation, expected, 0.2)


def test_shortlists_are_widened_until_the_recall_is_reached(index: CascadeIndex) -> None:
    """If it fails, a bundle misses labels that exact search finds, although they are the better answers."""
    facts = chosen(index, exact_is_worse=False)
    assert not facts.exact_is_worse
    assert facts.recall_at_10 >= RECALL_TARGET == facts.recall_target
    assert facts.checkpoint_shortlist == (1, 2)
    assert facts.shortlist > (1, 2)
    assert all(size <= nodes for size, nodes in zip(facts.shortlist, CLUSTERS, strict=True))
    assert facts.levels[0].shortlist_recall >= 0.99
    assert [level.nodes for level in facts.levels] == [*CLUSTERS, LABELS]


def test_shortlists_stay_if_exact_search_is_worse(index: CascadeIndex) -> None:
    """If it fails, an export makes answers slower and worse to reach a recall of bad answers."""
    facts = chosen(index, exact_is_worse=True)
    assert facts.exact_is_worse
    assert facts.shortlist == facts.checkpoint_shortlist == (1, 2)
    assert 0 < facts.recall_at_10 < RECALL_TARGET


def test_the_cosine_is_that_of_the_worst_level() -> None:
    """If it fails, an encoder that is wrong at a level with short features passes the parity gate."""
    expected_QD = np.array([[100.0, 1.0, 0.5, 1.0]], np.float32)
    actual_QD = np.array([[100.0, 1.0, 0.4, 1.0]], np.float32)
    assert level_cosine(expected_QD, expected_QD, (2, 2)) == 1.0
    assert level_cosine(expected_QD, actual_QD, (4,)) > 0.9999
    assert level_cosine(expected_QD, actual_QD, (2, 2)) < 0.999


def test_rows_of_a_diverged_run_are_refused(index: CascadeIndex, tmp_path: Path) -> None:
    """If it fails, a model with NaN is published, or the error does not say where the NaN is."""
    rows = [rows_NE.copy() for rows_NE in index.rows]
    rows[1][7, 2] = np.nan
    diverged: Any = SimpleNamespace(level_rows=lambda: rows)
    with pytest.raises(GateError, match="node 7 of level 1 has a row with NaN or Inf: training diverged"):
        cascade_job(None, diverged, tmp_path, ExportSettings(), silent_stage, [])  # type: ignore[arg-type]
